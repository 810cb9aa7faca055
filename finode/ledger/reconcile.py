"""Range-based set reconciliation: what two ledgers lack of each other's, at a cost that follows the difference.

[Meyer 2022] A. Meyer, "Range-Based Set Reconciliation". The opener says what it has as fingerprints of ranges; the
listener leaves out the ranges in which both have the same, cuts the others into `WAYS` parts and says their
fingerprints, or, of a range in which it has few, the hashes themselves. The opener does the same with that answer, and
so on, until only lists are left: from two lists follows who lacks what. The top level is one range for each of the
last epochs and one for all before, since what differs is mostly new.

No I/O: `Comparison` is the opener's side, `answer` the listener's, which keeps nothing between two messages.

    comparison = Comparison(elements)
    request = comparison.request          # a Compare, or None when there is nothing left to ask
    comparison.receive(elements, compared)
    comparison.fetch, comparison.push     # hashes that the opener, and the listener, lack
    comparison.until                      # b"", or where a next comparison has to begin: more differ than one may list

Cost: with n records and d differences about d * log_16(n / 32) cuts of 16 fingerprints, 40 bytes each, two levels to a
round trip.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from finode.errors import RemoteProtocolError
from finode.ledger.elements import Elements, hash_of
from finode.wire.receipts import HASH_BYTES
from finode.wire.reconciliation import KEY_BYTES, Compare, Compared, KeyRange

WAYS = 16
"""Parts of a range in which the two sides differ."""
FEW = 32
"""Records of a range that are listed rather than cut: their hashes weigh about as much as two cuts."""
EPOCHS = 15
"""Epochs that have a fingerprint of their own at the top."""
PAGE = 2048
"""Differences of one comparison; what is beyond comes with the next one."""
MAX_ROUNDS = 64
"""Answers of one comparison: a listener that never agrees must not keep the opener for ever."""
_ROOM = 64 * 1024
"""Bytes of ranges after which a message is full: what one more range may add still fits its limits."""


def describe(elements: Elements, start: bytes, until: bytes) -> KeyRange:
    """Return a range as this side has it: its hashes where they are few, else its fingerprint."""
    count = elements.count(start, until)
    if count > FEW:
        return KeyRange(start=start, until=until, count=count, fingerprint=elements.fingerprint(start, until))
    hashes = tuple(hash_of(key) for key in elements.keys(start, until))
    return KeyRange(start=start, until=until, count=count, fingerprint=b"", hashes=hashes)


def differing(elements: Elements, theirs: KeyRange) -> list[KeyRange]:
    """Return how this side answers a fingerprint: not at all, with its hashes, or with the fingerprints of parts."""
    start, until = theirs.start, theirs.until
    if elements.count(start, until) == theirs.count and elements.fingerprint(start, until) == theirs.fingerprint:
        return []
    if elements.count(start, until) <= FEW:
        return [describe(elements, start, until)]
    return [describe(elements, *part) for part in elements.split(start, until, WAYS)]


def top(elements: Elements, start: bytes = b"") -> list[KeyRange]:
    """Return all from `start` on, as the opener's first message says it: by epoch."""
    if elements.count(start) <= FEW:
        return [describe(elements, start, b"")]
    bounds = [start, *(bound for bound in elements.epochs(EPOCHS) if bound > start), b""]
    return [describe(elements, bounds[at], bounds[at + 1]) for at in range(len(bounds) - 1)]


def answer(elements: Elements, request: Compare) -> Compared:
    """Return the listener's answer: where it differs from what the opener has."""
    ranges: list[KeyRange] = []
    have: list[bytes] = []
    want: list[bytes] = []
    until = b""
    for theirs in request.ranges:
        if _size(ranges) > _ROOM or len(have) >= PAGE:
            until = theirs.start
            break
        if theirs.fingerprint:
            ranges += differing(elements, theirs)
            continue
        listed = set(theirs.hashes)
        keys = elements.keys(theirs.start, theirs.until)
        lacking = [key for key in keys if hash_of(key) not in listed]
        room = PAGE - len(have)
        have += map(hash_of, lacking[:room])
        want += sorted(listed.difference(map(hash_of, keys)))
        if len(lacking) > room:
            until = lacking[room]
            break
    return Compared(ranges=tuple(ranges), have=tuple(have), want=tuple(want), until=until)


@dataclass(slots=True)
class Comparison:
    """The opener's side of one comparison from `start` on. Build it with `Comparison.begin`."""

    request: Compare | None
    """What to send next; None when all is known."""
    start: bytes = b""
    until: bytes = b""
    fetch: list[bytes] = field(default_factory=list)
    push: list[bytes] = field(default_factory=list)
    _rounds: int = 0

    @classmethod
    def begin(cls, elements: Elements, start: bytes = b"") -> Comparison:
        return cls(Compare(ranges=tuple(top(elements, start))), start)

    def receive(self, elements: Elements, compared: Compared) -> None:
        """Take the listener's answer; `request` is then what to send next.

        Raises `RemoteProtocolError` for an answer that is none to what was asked.
        """
        if self.request is None:
            raise RemoteProtocolError("an answer to a comparison that nobody asked for")
        self._rounds += 1
        if self._rounds > MAX_ROUNDS:
            raise RemoteProtocolError(f"the ledgers were not compared after {MAX_ROUNDS} messages")
        asked = self.request.ranges
        if compared.until:
            if compared.until <= asked[0].start:
                raise RemoteProtocolError("an answer that looked at nothing")
            self._cut(compared.until)
        self.fetch += [hash for hash in compared.have if not elements.has(hash)]
        self.push += [hash for hash in compared.want if elements.has(hash)]
        following: list[KeyRange] = []
        for theirs in compared.ranges:
            if not any(_within(theirs, one) for one in asked):
                raise RemoteProtocolError("an answer about a range that was not asked about")
            if self.until and theirs.start >= self.until:
                break
            if len(self.fetch) + len(self.push) >= PAGE or _size(following) > _ROOM:
                self._cut(theirs.start)
                break
            if theirs.fingerprint:
                following += differing(elements, theirs)
            else:
                self._compare_lists(elements, theirs)
        following = [one for one in following if not self.until or one.start < self.until]
        self.request = Compare(ranges=tuple(following)) if following else None

    def _compare_lists(self, elements: Elements, theirs: KeyRange) -> None:
        listed = set(theirs.hashes)
        keys = elements.keys(theirs.start, theirs.until)
        lacking = [key for key in keys if hash_of(key) not in listed]
        room = PAGE - len(self.fetch) - len(self.push)
        self.push += map(hash_of, lacking[:room])
        self.fetch += sorted(listed.difference(map(hash_of, keys)))
        if len(lacking) > room:
            self._cut(lacking[room])

    def _cut(self, bound: bytes) -> None:
        """Leave what is from `bound` on to the next comparison."""
        self.until = min(self.until, bound) if self.until else bound


def _size(ranges: list[KeyRange]) -> int:
    return sum(2 * KEY_BYTES + HASH_BYTES * (1 + len(one.hashes)) for one in ranges)


def _within(part: KeyRange, whole: KeyRange) -> bool:
    return part.start >= whole.start and (not whole.until or (bool(part.until) and part.until <= whole.until))
