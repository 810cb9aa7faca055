"""Files of receipts: verified record by record without a daemon, and written so that none is ever left in halves.

`verify_file` needs no home, no roster and no network: a record proves itself by its signatures. What it cannot say is
whether a record is missing, and whether the keys belong to whom you think: compare the peer ids with your roster.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from finode.errors import InputError, StorageFull, WireError
from finode.ledger.envelopes import open_envelope, verify
from finode.ledger.export import Entry, read_entries
from finode.ledger.records import (
    Verified,
    VerifiedDeployment,
    VerifiedEquivocation,
    VerifiedReceipt,
    VerifiedStatement,
)

_CHANGED: Final = "it was changed after it was signed, or never signed so: ask another member for its export"
_DAMAGED: Final = "the file was damaged, or made by another version: copy or export it again"
_BROKEN: Final = "the file is damaged or not complete: copy or export it again"


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What is wrong with one record (0: with the file), and what to do. `offset` is in bytes."""

    number: int
    offset: int
    kind: str
    problem: str
    remedy: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileReport:
    """What is in an export. `records` counts all that could be read, `sound` those that are true.

    The rest counts true records alone. `incomplete` receipts lack a signature, which is no fault of the file;
    `unsigned_models` are models of receipts whose owners' deployments the file lacks; `proofs` are contradictions, and
    `condemned` the peers that they are proofs against.
    """

    file: str
    records: int
    sound: int
    receipts: int
    incomplete: int
    deployments: int
    unsigned_models: int
    statements: int
    proofs: int
    condemned: tuple[str, ...]
    federations: tuple[str, ...]
    epochs: tuple[int, ...]
    problems: tuple[Problem, ...]


@dataclass(slots=True)
class _Tally:
    """What true records add up to while a file is read."""

    receipts: int = 0
    incomplete: int = 0
    statements: int = 0
    proofs: int = 0
    deployments: set[bytes] = field(default_factory=set)
    models: set[bytes] = field(default_factory=set)
    condemned: set[str] = field(default_factory=set)
    federations: set[str] = field(default_factory=set)
    epochs: set[int] = field(default_factory=set)

    def take(self, record: Verified) -> None:
        match record:
            case VerifiedReceipt():
                self.receipts += 1
                self.incomplete += bool(record.withheld)
                self.models |= {model.deployment for model in record.receipt.models}
                self.federations.add(record.receipt.federation)
                self.epochs.add(record.receipt.epoch)
            case VerifiedStatement():
                self.statements += 1
                self.federations.add(record.statement.federation)
                self.epochs.add(record.statement.epoch)
            case VerifiedDeployment():
                self.deployments.add(record.deployment.deployment)
                self.federations.add(record.deployment.federation)
            case VerifiedEquivocation():
                self.proofs += 1
                self.condemned.add(record.signer)


def verify_file(path: Path) -> FileReport:
    """Check every record of an export; raise `InputError` if there is no such file or it cannot be read."""
    tally, problems, records = _Tally(), [], 0
    try:
        with path.open("rb") as file:
            entries = read_entries(file)
            while True:
                try:
                    entry = next(entries, None)
                except WireError as error:
                    problems.append(
                        Problem(number=0, offset=file.tell(), kind="file", problem=error.message, remedy=_BROKEN)
                    )
                    break
                if entry is None:
                    break
                records += 1
                problems += _verify(entry, tally)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    return FileReport(
        file=str(path),
        records=records,
        sound=records - sum(problem.number > 0 for problem in problems),
        receipts=tally.receipts,
        incomplete=tally.incomplete,
        deployments=len(tally.deployments),
        unsigned_models=len(tally.models - tally.deployments),
        statements=tally.statements,
        proofs=tally.proofs,
        condemned=tuple(sorted(tally.condemned)),
        federations=tuple(sorted(tally.federations)),
        epochs=tuple(sorted(tally.epochs)),
        problems=tuple(problems),
    )


def require_new(path: Path, force: bool) -> None:
    """Raise `InputError` if a file is there that may not be replaced."""
    if path.exists() and not force:
        raise InputError(f"{path} exists already", hint="--force replaces it")


def save_export(path: Path, data: bytes, *, force: bool) -> None:
    """Write an export: all of it or, where that fails, nothing.

    Raises `InputError` if the file is there and not to be replaced, or cannot be written, and `StorageFull`.
    """
    require_new(path, force)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"cannot write {path}: {error.strerror}", hint="free space, or write elsewhere") from None
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _verify(entry: Entry, tally: _Tally) -> Iterator[Problem]:
    """Check one record and add it up; yield what is wrong with it."""
    remedy = _DAMAGED
    try:
        record = open_envelope(entry.envelope)
        remedy = _CHANGED
        tally.take(verify(record))
    except WireError as error:
        yield Problem(
            number=entry.number,
            offset=entry.offset,
            kind=entry.envelope.kind.value,
            problem=error.message,
            remedy=remedy,
        )
