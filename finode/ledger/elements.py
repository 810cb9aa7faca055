"""The keys of all records, in order, with cheap sums over any range: what reconciliation compares.

A key is the epoch (8 bytes), the kind (1 byte) and the record's hash (32 bytes), so that a range of keys is one of
epochs first. Keys lie in sorted blocks of a few hundred; each block carries the sum of its hashes, so adding, removing
and fingerprinting touch two blocks and add up one number for each of the others.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator

from finode.ledger.envelopes import Place
from finode.wire import canonical
from finode.wire.reconciliation import FINGERPRINT_BYTES, KEY_BYTES, RecordKind

BLOCK = 512
"""Keys of a block at most; a full one is cut in two."""
_MODULUS = 1 << 256
_HASH = slice(9, KEY_BYTES)


def key_of(place: Place, hash: bytes) -> bytes:
    """Return the key of a record that stands at `place` and whose envelope has this hash."""
    return place.epoch.to_bytes(8, "big") + bytes([list(RecordKind).index(place.kind)]) + hash


def hash_of(key: bytes) -> bytes:
    """Return the hash in a key."""
    return key[_HASH]


def _number(key: bytes) -> int:
    return int.from_bytes(key[_HASH], "big")


class Elements:
    """A sorted set of keys. Bounds are as in `KeyRange`: `start` included, `until` not, an empty `until` is the end."""

    def __init__(self, keys: Iterable[bytes] = ()) -> None:
        ordered = sorted(set(keys))
        self._blocks = [ordered[at : at + BLOCK // 2] for at in range(0, len(ordered), BLOCK // 2)] or [[]]
        self._sums = [sum(map(_number, block)) for block in self._blocks]
        self._keys = {hash_of(key): key for key in ordered}

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[bytes]:
        for block in self._blocks:
            yield from block

    def has(self, hash: bytes) -> bool:
        """Return whether a record of this hash is there."""
        return hash in self._keys

    def add(self, key: bytes) -> None:
        """Add a key; one that is there already changes nothing."""
        if hash_of(key) in self._keys:
            return
        at = self._block_of(key)
        block = self._blocks[at]
        insort(block, key)
        self._sums[at] += _number(key)
        self._keys[hash_of(key)] = key
        if len(block) > BLOCK:
            half = block[BLOCK // 2 :]
            del block[BLOCK // 2 :]
            moved = sum(map(_number, half))
            self._sums[at] -= moved
            self._blocks.insert(at + 1, half)
            self._sums.insert(at + 1, moved)

    def remove(self, hash: bytes) -> None:
        """Remove the key of a hash; one that is not there changes nothing."""
        key = self._keys.pop(hash, None)
        if key is None:
            return
        at = self._block_of(key)
        block = self._blocks[at]
        del block[bisect_left(block, key)]
        self._sums[at] -= _number(key)
        if not block and len(self._blocks) > 1:
            del self._blocks[at], self._sums[at]

    def count(self, start: bytes = b"", until: bytes = b"") -> int:
        """Return how many keys are in a range."""
        return self._rank(until) - self._rank(start) if until else len(self) - self._rank(start)

    def keys(self, start: bytes = b"", until: bytes = b"", limit: int | None = None) -> list[bytes]:
        """Return the first `limit` keys of a range, in order."""
        found: list[bytes] = []
        at, offset = self._locate(start)
        while at < len(self._blocks) and (limit is None or len(found) < limit):
            block = self._blocks[at]
            end = bisect_left(block, until) if until else len(block)
            found += block[offset:end]
            if end < len(block):
                break
            at, offset = at + 1, 0
        return found if limit is None else found[:limit]

    def fingerprint(self, start: bytes = b"", until: bytes = b"") -> bytes:
        """Return the fingerprint of a range (see `finode.wire.reconciliation`)."""
        total = self._total(until) - self._total(start) if until else sum(self._sums) - self._total(start)
        count = self.count(start, until)
        stated = count.to_bytes(8, "big") + (total % _MODULUS).to_bytes(32, "big")
        return canonical.digest("ledger-range", stated)[:FINGERPRINT_BYTES]

    def split(self, start: bytes, until: bytes, ways: int) -> list[tuple[bytes, bytes]]:
        """Return a range cut into `ways` ranges of about as many keys each; the inner bounds are as short as can be."""
        first, count = self._rank(start), self.count(start, until)
        bounds = [start]
        for part in range(1, ways):
            rank = first + count * part // ways
            if first < rank < first + count:
                bound = _shortest(self._at(rank - 1), self._at(rank))
                if bound > bounds[-1]:
                    bounds.append(bound)
        return list(zip(bounds, [*bounds[1:], until], strict=True))

    def epochs(self, limit: int) -> list[bytes]:
        """Return the bounds at which the last `limit` epochs begin that have records, ascending."""
        bounds: list[bytes] = []
        until = b""
        while len(bounds) < limit:
            rank = self._rank(until) if until else len(self)
            if not rank:
                break
            until = self._at(rank - 1)[:8]
            bounds.append(until)
        return bounds[::-1]

    def _block_of(self, key: bytes) -> int:
        low, high = 0, len(self._blocks)
        while high - low > 1:
            middle = (low + high) // 2
            if self._blocks[middle][0] <= key:
                low = middle
            else:
                high = middle
        return low

    def _locate(self, bound: bytes) -> tuple[int, int]:
        at = self._block_of(bound)
        return at, bisect_left(self._blocks[at], bound)

    def _rank(self, bound: bytes) -> int:
        at, offset = self._locate(bound)
        return sum(map(len, self._blocks[:at])) + offset

    def _total(self, bound: bytes) -> int:
        at, offset = self._locate(bound)
        return sum(self._sums[:at]) + sum(map(_number, self._blocks[at][:offset]))

    def _at(self, rank: int) -> bytes:
        for block in self._blocks:
            if rank < len(block):
                return block[rank]
            rank -= len(block)
        raise IndexError(rank)


def _shortest(before: bytes, after: bytes) -> bytes:
    """Return the shortest prefix of `after` that is greater than `before`."""
    same = next(at for at in range(len(after)) if before[at] != after[at])
    return after[: same + 1]
