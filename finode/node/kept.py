"""What a worker process keeps between requests: deployments ready for runs, and bundles that wait for theirs.

A deployment's shares and constants are read from their files once and kept as the engine wants them. A bundle comes in
pieces, is prepared gate by gate while nobody asks for anything, and serves one run. All of it is memory of this
process and dies with it: a worker that starts again knows no bundle.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from finode.errors import LocalError, LocalProtocolError
from finode.node.channel import Buffer
from finode.smpc.engine import Engine, Holding, Prepared, Program

Key = tuple[object, ...]


class HoldingCache:
    """Deployments by their files, for as long as these are the same; the least recently used go first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._kept: OrderedDict[Key, Holding] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(
        self,
        engine: Engine,
        program: Program,
        party_index: int,
        constants: Sequence[str],
        shares: Sequence[str],
        mask_seeds: Sequence[bytes],
    ) -> Holding:
        """Return the holding of a program's deployments, read from the files `constants` and `shares`.

        Raises `OSError`, and `LocalError` for files that do not fit.
        """
        self._drop_withdrawn()
        paths = (*constants, *shares)
        masks = hashlib.sha256(b"".join(mask_seeds)).digest()
        key = (engine.name, program.deployments, program.parties, party_index, masks, *map(_version, paths))
        if key not in self._kept:
            self._kept[key] = engine.hold(
                program,
                party_index,
                [Path(path).read_bytes() for path in constants],
                mask_seeds,
                [Path(path).read_bytes() for path in shares],
            )
            while len(self._kept) > 1 and sum(kept.size_bytes for kept in self._kept.values()) > self._limit:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]

    def _drop_withdrawn(self) -> None:
        """Forget deployments whose files are gone: their owners took them back."""
        for key in [key for key in self._kept if not all(os.path.exists(file.path) for file in _files(key))]:
            del self._kept[key]


@dataclass(frozen=True, slots=True)
class _File:
    path: str
    changed_ns: int
    inode: int


def _version(path: str) -> _File:
    status = os.stat(path)
    return _File(path, status.st_mtime_ns, status.st_ino)


def _files(key: Key) -> list[_File]:
    return [part for part in key if isinstance(part, _File)]


@dataclass(slots=True)
class KeptBundle:
    """A party's bundle: what of its corrections came, and from when it is whole, its preparation."""

    engine: Engine
    prepare: Callable[[Buffer], Prepared]
    corrections: bytearray = field(repr=False)
    filled: int = 0
    prepared: Prepared | None = None

    def feed(self, chunk: Buffer) -> None:
        """Take the next piece of the corrections; one that does not fit is not taken, and `close` says so."""
        end = self.filled + len(chunk)
        if end <= len(self.corrections):
            self.corrections[self.filled : end] = chunk
        self.filled = end

    def close(self) -> None:
        """All pieces came; raise `LocalError` when they are not as many bytes as were announced."""
        if self.filled != len(self.corrections):
            raise LocalError(f"a bundle of {len(self.corrections)} bytes of corrections came with {self.filled}")
        self.prepared = self.prepare(self.corrections)
        self.corrections = bytearray()


class BundleKeep:
    """The bundles of a worker by their names. One that is taken or burned is gone."""

    def __init__(self) -> None:
        self._bundles: dict[bytes, KeptBundle] = {}
        self._unprepared: deque[bytes] = deque()

    def __len__(self) -> int:
        return len(self._bundles)

    def begin(self, name: bytes, bundle: KeptBundle) -> None:
        """Expect a bundle's pieces; raise `LocalProtocolError` when there is one of that name."""
        if name in self._bundles:
            raise LocalProtocolError("a bundle comes a second time")
        self._bundles[name] = bundle

    def feed(self, name: bytes, chunk: Buffer) -> None:
        """Take a piece of a bundle; one of a bundle that was burned meanwhile is dropped."""
        if (bundle := self._bundles.get(name)) is not None:
            bundle.feed(chunk)

    def close(self, name: bytes) -> None:
        """All pieces of a bundle came: it may be taken, and is prepared until then."""
        bundle = self._bundles.get(name)
        if bundle is None:
            raise LocalProtocolError("the bundle was burned")
        try:
            bundle.close()
        except LocalError:
            self.burn(name)
            raise
        self._unprepared.append(name)

    def take(self, name: bytes) -> KeptBundle:
        """Take a bundle for its one run; raise `LocalProtocolError` when it was taken, burned or never came."""
        bundle = self._bundles.pop(name, None)
        if bundle is None or bundle.prepared is None:
            raise LocalProtocolError("the bundle was used, burned, or never came")
        return bundle

    def burn(self, name: bytes) -> None:
        """Forget a bundle if it is here."""
        self._bundles.pop(name, None)

    def advance(self) -> bool:
        """Prepare one more piece of the oldest bundle; return whether there was any."""
        while self._unprepared:
            name = self._unprepared[0]
            bundle = self._bundles.get(name)
            try:
                if bundle is not None and bundle.prepared is not None and bundle.prepared.advance():
                    return True
            except BaseException:
                self.burn(name)
                self._unprepared.popleft()
                raise
            self._unprepared.popleft()
        return False
