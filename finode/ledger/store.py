"""The ledger: every record that was verified, in SQLite, for ever.

    HOME/ledger.sqlite  SQLite in WAL mode, 0600
      records           one row per version of a record: what it is, where it stands, its envelope; never changed
      sessions          which sessions a receipt or a statement is about, to find those that contradict each other

It is a set: what is in it follows from the records that came, not from their order, nor from how often they came
(`merging`). Where versions of one record were merged, the row with the highest number is the record; of the older rows
the last few stay. Where two records contradict each other the proofs enter the ledger by themselves.

Each `add_all` is one transaction, synced to the disk before it returns: what it returned survives a kill and a loss of
power, and of what it had not returned nothing or everything is there. All methods may be called from any thread; reads
have a connection of their own and do not wait for writes.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finode.errors import InputError, UnknownRecord, WireError
from finode.identity import PeerId
from finode.ledger.database import VERSIONS, connect, damaged, translated
from finode.ledger.elements import Elements, hash_of, key_of
from finode.ledger.envelopes import Place, envelope, place_of, recall
from finode.ledger.merging import merge, proofs
from finode.ledger.records import (
    Verified,
    VerifiedDeployment,
    VerifiedEquivocation,
    VerifiedReceipt,
    VerifiedStatement,
)
from finode.wire import canonical
from finode.wire.reconciliation import Envelope, RecordKind

FILE_NAME = "ledger.sqlite"
V = TypeVar("V", bound=Verified)
_PAGE = 256
"""Rows read at once, so that a long iteration holds up nobody."""
_CURRENT = """
    NOT EXISTS (SELECT 1 FROM records AS newer
                WHERE newer.kind = records.kind AND newer.id = records.id AND newer.number > records.number)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Added:
    """What became new: a record, as the ledger has it now. `previous`: the version that it took the place of, if any.

    Whoever keeps something that follows from the ledger needs no more than these, in the order in which they come.
    """

    record: Verified
    previous: Verified | None


class Ledger:
    """All records of one node. Open it with `Ledger.open`."""

    def __init__(self, path: Path, writing: sqlite3.Connection, reading: sqlite3.Connection) -> None:
        self.path = path
        self._writing = writing
        self._reading = reading
        self._write_lock = threading.Lock()
        self._read_lock = threading.Lock()
        self._state_lock = threading.Lock()
        self._elements = Elements()
        self._counts: Counter[RecordKind] = Counter()
        self._condemned: frozenset[PeerId] = frozenset()

    @classmethod
    def open(cls, path: Path) -> Ledger:
        """Open a ledger, or make a new one where there is no file.

        Raises `ConfigError` for a file that is no ledger, is damaged, newer than this program or in use, and
        `StorageFull`. The file is left as it is then.
        """
        with ExitStack() as stack:
            connections = connect(path)
            for connection in connections:
                stack.callback(connection.close)
            ledger = cls(path, *connections)
            ledger._load()
            stack.pop_all()  # they stay open with the ledger
        return ledger

    def close(self) -> None:
        """Close the file; nothing can be called after it."""
        with self._write_lock, self._read_lock:
            self._writing.close()
            self._reading.close()

    # -- writing -------------------------------------------------------------------------------------------------

    def add_all(self, records: Iterable[Verified]) -> tuple[Added, ...]:
        """Add records in one transaction and return what was new, proofs that followed included.

        Raises `StorageFull` or `ConfigError` when it cannot be written: then nothing was added.
        """
        with self._write_lock, translated(self.path):
            added: list[Added] = []
            changes: list[tuple[RecordKind, bytes | None, bytes]] = []
            self._writing.execute("BEGIN IMMEDIATE")
            with self._writing:  # commits, or rolls back
                for record in records:
                    self._add(record, added, changes)
            self._take_note(added, changes)
        return tuple(added)

    def _add(self, record: Verified, added: list[Added], changes: list[tuple[RecordKind, bytes | None, bytes]]) -> None:
        place = place_of(record)
        previous = self._version(place.kind, place.id)
        merged = record if previous is None else merge(previous.record, record)
        if previous is not None and merged is previous.record:
            return
        wrapped = envelope(merged.signed)
        hash = wrapped.hash()
        self._writing.execute(
            "INSERT INTO records (kind, id, epoch, time_ms, hash, envelope) VALUES (?, ?, ?, ?, ?, ?)",
            (place.kind.value, place.id, place.epoch, place.time_ms, hash, wrapped.data),
        )
        if previous is not None:
            self._forget_old(place)
        added.append(Added(record=merged, previous=None if previous is None else previous.record))
        changes.append((place.kind, None if previous is None else previous.hash, key_of(place, hash)))
        for subject, sessions in _sessions(merged):
            if previous is None:
                self._writing.executemany(
                    "INSERT INTO sessions VALUES (?, ?, ?, ?)",
                    [(subject, session, place.id, place.kind.value) for session in sessions],
                )
            for other in self._about(subject, sessions, place):
                for proof in proofs(merged, other):
                    self._add(proof, added, changes)

    def _forget_old(self, place: Place) -> None:
        self._writing.execute(
            "DELETE FROM records WHERE kind = ?1 AND id = ?2 AND number NOT IN "
            "(SELECT number FROM records WHERE kind = ?1 AND id = ?2 ORDER BY number DESC LIMIT ?3)",
            (place.kind.value, place.id, VERSIONS),
        )

    def _version(self, kind: RecordKind, id: bytes) -> _Row | None:
        row = self._writing.execute(
            "SELECT hash, envelope FROM records WHERE kind = ? AND id = ? ORDER BY number DESC LIMIT 1",
            (kind.value, id),
        ).fetchone()
        return None if row is None else _Row(row[0], self._recall(kind, id, *row))

    def _about(self, subject: str, sessions: Sequence[bytes], place: Place) -> list[Verified]:
        """Return the other records about any of these sessions."""
        found: dict[bytes, RecordKind] = {}
        for session in sessions:
            rows = self._writing.execute(
                "SELECT kind, id FROM sessions WHERE subject = ? AND session = ? AND id <> ?",
                (subject, session, place.id),
            )
            found.update((id, RecordKind(kind)) for kind, id in rows)
        versions = [self._version(kind, id) for id, kind in sorted(found.items())]
        return [version.record for version in versions if version is not None]

    def _take_note(self, added: Sequence[Added], changes: Sequence[tuple[RecordKind, bytes | None, bytes]]) -> None:
        with self._state_lock:
            for kind, replaced, key in changes:
                if replaced is None:
                    self._counts[kind] += 1
                else:
                    self._elements.remove(replaced)
                self._elements.add(key)
            self._condemned |= {one.record.signer for one in added if isinstance(one.record, VerifiedEquivocation)}

    # -- reading -------------------------------------------------------------------------------------------------

    def receipts(self, epoch: int | None = None, limit: int = 100) -> tuple[VerifiedReceipt, ...]:
        """Return the receipts of an epoch, or of all, the latest first."""
        where, given = ("", ()) if epoch is None else ("AND epoch = ?", (epoch,))
        rows = self._read(
            f"SELECT id, hash, envelope FROM records WHERE kind = 'receipt' {where} AND {_CURRENT} "  # noqa: S608
            "ORDER BY time_ms DESC, id LIMIT ?",
            (*given, limit),
        )
        return tuple(self._recall_as(VerifiedReceipt, RecordKind.RECEIPT, row) for row in rows)

    def receipt(self, prefix: str) -> VerifiedReceipt:
        """Return the one receipt whose id, or whose session, begins with the hex digits `prefix`.

        Raises `UnknownRecord` for none, `InputError` for several.
        """
        low, high = _span(prefix)
        rows = self._read(
            f"SELECT id, hash, envelope FROM records WHERE kind = 'receipt' AND {_CURRENT} AND "  # noqa: S608
            "(id BETWEEN ?1 AND ?2 OR id IN (SELECT id FROM sessions WHERE subject = 'receipt' AND session "
            "BETWEEN ?3 AND ?4)) LIMIT 2",
            (low, high, *((low[:16], high[:16]) if len(prefix) <= 32 else (b"", b""))),
        )
        if not rows:
            raise UnknownRecord(f"no receipt or session begins with {prefix!r}", hint="see `finode receipts list`")
        if len(rows) > 1:
            raise InputError(f"several receipts match {prefix!r}", hint="give more digits of an id or a session")
        return self._recall_as(VerifiedReceipt, RecordKind.RECEIPT, rows[0])

    def receipts_of(self, session: bytes) -> tuple[VerifiedReceipt, ...]:
        """Return the receipts of a session: several if somebody made one up, or members contradicted each other."""
        rows = self._read(
            f"SELECT id, hash, envelope FROM records WHERE kind = 'receipt' AND {_CURRENT} AND id IN "  # noqa: S608
            "(SELECT id FROM sessions WHERE subject = 'receipt' AND session = ?) ORDER BY id",
            (session,),
        )
        return tuple(self._recall_as(VerifiedReceipt, RecordKind.RECEIPT, row) for row in rows)

    def statements(self) -> tuple[VerifiedStatement, ...]:
        """Return all epoch statements, by epoch."""
        rows = self._current(RecordKind.STATEMENT)
        return tuple(self._recall_as(VerifiedStatement, RecordKind.STATEMENT, row) for row in rows)

    def deployments(self) -> tuple[VerifiedDeployment, ...]:
        """Return all deployments."""
        rows = self._current(RecordKind.DEPLOYMENT)
        return tuple(self._recall_as(VerifiedDeployment, RecordKind.DEPLOYMENT, row) for row in rows)

    def deployment(self, id: bytes) -> VerifiedDeployment | None:
        """Return the deployment of an id, None if no owner's signature of it has come."""
        rows = self._read(
            "SELECT id, hash, envelope FROM records WHERE kind = 'deployment' AND id = ? ORDER BY number DESC LIMIT 1",
            (id,),
        )
        return self._recall_as(VerifiedDeployment, RecordKind.DEPLOYMENT, rows[0]) if rows else None

    def proofs(self) -> tuple[VerifiedEquivocation, ...]:
        """Return a proof against each peer that is condemned."""
        rows = self._current(RecordKind.EQUIVOCATION)
        return tuple(self._recall_as(VerifiedEquivocation, RecordKind.EQUIVOCATION, row) for row in rows)

    def condemned(self) -> frozenset[PeerId]:
        """Return the peers that signed contradictory bodies."""
        return self._condemned

    def counts(self) -> Mapping[RecordKind, int]:
        """Return how many records there are of each kind."""
        with self._state_lock:
            return {kind: self._counts[kind] for kind in RecordKind}

    def records(self, epoch: int | None = None) -> Iterator[Verified]:
        """Yield every record as it is now, or those of one epoch, in the order in which they came.

        Records that are added meanwhile may be missed: begin to take note of what `add_all` returns first.
        """
        where, given = ("", ()) if epoch is None else ("AND epoch = ?", (epoch,))
        number = 0
        while rows := self._read(
            f"SELECT kind, id, hash, envelope, number FROM records WHERE number > ? {where} AND {_CURRENT} "  # noqa: S608
            "ORDER BY number LIMIT ?",
            (number, *given, _PAGE),
        ):
            for kind, id, hash, data, number in rows:  # noqa: B007 - the last number is where the next page begins
                yield self._recall(RecordKind(kind), id, hash, data)

    def envelopes(self, hashes: Sequence[bytes]) -> list[Envelope | None]:
        """Return the records of these hashes as they are now, None for a hash that never was in this ledger.

        A hash of an earlier version gives what became of it: else two that merge each other's could miss the result.
        """
        found: list[Envelope | None] = []
        for hash in hashes:
            rows = self._read(
                "SELECT now.kind, now.envelope FROM records JOIN records AS now USING (kind, id) "
                "WHERE records.hash = ? ORDER BY now.number DESC LIMIT 1",
                (hash,),
            )
            found.append(Envelope(kind=RecordKind(rows[0][0]), data=rows[0][1]) if rows else None)
        return found

    def dump(self) -> bytes:
        """Return the whole ledger in canonical form: equal bytes on all nodes that have the same records."""
        with self.elements() as elements:
            hashes = [hash_of(key) for key in elements]
        return canonical.encode([canonical.encode(one) for one in self.envelopes(hashes) if one is not None])

    def has(self, hash: bytes) -> bool:
        """Return whether the record whose envelope has this hash is in the ledger."""
        with self._state_lock:
            return self._elements.has(hash)

    @contextmanager
    def elements(self) -> Iterator[Elements]:
        """Lend the keys of all records, for reconciliation: nothing is added for as long as the block lasts."""
        with self._state_lock:
            yield self._elements

    def _current(self, kind: RecordKind) -> list[tuple[Any, ...]]:
        return self._read(
            f"SELECT id, hash, envelope FROM records WHERE kind = ? AND {_CURRENT} ORDER BY epoch, id",  # noqa: S608
            (kind.value,),
        )

    def _read(self, query: str, given: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._read_lock, translated(self.path):
            return self._reading.execute(query, given).fetchall()

    def _recall_as(self, cls: type[V], kind: RecordKind, row: tuple[Any, ...]) -> V:
        record = self._recall(kind, *row)
        assert isinstance(record, cls)  # noqa: S101 - each kind has one class
        return record

    def _recall(self, kind: RecordKind, id: bytes, hash: bytes, data: bytes) -> Verified:
        try:
            if Envelope(kind=kind, data=data).hash() == hash:
                return recall(kind, id, data)
        except WireError:
            pass
        raise damaged(self.path, f"the {kind} {id.hex()[:12]} is not what was written")

    def _load(self) -> None:
        with translated(self.path):
            self._load_elements()
        self._condemned = frozenset(proof.signer for proof in self.proofs())

    def _load_elements(self) -> None:
        rows = self._reading.execute(
            "SELECT kind, id, epoch, hash FROM records INDEXED BY versions ORDER BY kind, id, number"
        )
        last: dict[tuple[str, bytes], bytes] = {}
        for kind, id, epoch, hash in rows:
            place = Place(kind=RecordKind(kind), id=id, epoch=epoch, time_ms=0)
            last[kind, id] = key_of(place, hash)
        self._elements = Elements(last.values())
        self._counts = Counter(RecordKind(kind) for kind, _ in last)


@dataclass(frozen=True, slots=True)
class _Row:
    hash: bytes
    record: Verified


def _sessions(record: Verified) -> list[tuple[str, tuple[bytes, ...]]]:
    """Return what a record is about: no other of the same subject may be about the same session."""
    match record:
        case VerifiedReceipt():
            return [("receipt", (record.receipt.session,))]
        case VerifiedStatement():
            return [(record.statement.kind.value, record.statement.sessions)]
    return []


def _span(prefix: str) -> tuple[bytes, bytes]:
    """Return the lowest and the highest 32 bytes whose hex digits begin with `prefix`."""
    digits = prefix.lower()
    if not digits or len(digits) > 64 or any(digit not in "0123456789abcdef" for digit in digits):
        raise InputError(f"{prefix!r} does not begin an id or a session", hint="give its hex digits")
    return bytes.fromhex(digits.ljust(64, "0")), bytes.fromhex(digits.ljust(64, "f"))
