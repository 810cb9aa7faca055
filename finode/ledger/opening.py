"""When sums of votes may be opened, and whether opened ones can be true: pure rules that every member applies.

Sums are opened only over at least `min_queries` inputs from at least two sessions, and where several queriers asked,
none of them gave more than half: whoever knows all but one of the inputs would otherwise learn the votes on that one.
What does not fulfil this carries over to a later epoch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from finode.identity import PeerId
from finode.wire.receipts import MAX_SESSIONS, EpochStatement, StatementKind

SCALE = 1 << 16
ROUNDING = 64
"""What a sum at scale 2^16 may be off per input, in units of its last digit: tables of the engine round."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One session's part of the sums, without the sums: who asked, and how many inputs."""

    session: bytes
    querier: PeerId
    count: int
    ended_ms: int


def may_open(parts: Sequence[Part], min_queries: int) -> bool:
    """Return whether the sum of exactly these sessions may be opened."""
    asked: Counter[PeerId] = Counter()
    for part in parts:
        asked[part.querier] += part.count
    total = asked.total()
    if len(parts) < 2 or total < min_queries:
        return False
    return len(asked) < 2 or 2 * max(asked.values()) <= total


def largest_opening(parts: Sequence[Part], min_queries: int) -> tuple[Part, ...]:
    """Return the sessions to open now, the oldest first; none if no choice of them keeps the rules.

    A querier that gave more than half is cut back to its oldest sessions, as many as the others' inputs balance. Where
    that leaves too few, the others wait as well: opened without it they might be too few for the next time.
    """
    chosen = sorted(parts, key=lambda part: (part.ended_ms, part.session))[:MAX_SESSIONS]
    asked: Counter[PeerId] = Counter()
    for part in chosen:
        asked[part.querier] += part.count
    if len(asked) > 1:
        querier, most = max(asked.items(), key=lambda item: (item[1], item[0]))
        room = asked.total() - most
        kept = []
        for part in chosen:
            if part.querier == querier:
                if part.count > room:
                    continue
                room -= part.count
            kept.append(part)
        chosen = kept
    return tuple(chosen) if may_open(chosen, min_queries) else ()


def contradiction_in(statement: EpochStatement) -> str:
    """Return what in a statement cannot be true, "" if nothing is found. With noise only its shape is known."""
    if statement.sigma_milli:
        return ""
    samples, sums = statement.samples, (*statement.joint, *statement.counts, *statement.correct)
    if any(not 0 <= value <= samples for value in sums):
        return "a count is negative or larger than the number of inputs"
    if statement.kind is StatementKind.LABELS:
        return ""
    k, c = len(statement.models), statement.classes
    counts = [statement.counts[model * c : (model + 1) * c] for model in range(k)]
    if any(sum(row) != samples for row in counts):
        return "a model did not vote once on each input"
    if statement.joint:
        for index, (first, second) in enumerate(combinations(range(k), 2)):
            matrix = statement.joint[index * c * c : (index + 1) * c * c]
            rows = tuple(sum(matrix[i * c : (i + 1) * c]) for i in range(c))
            columns = tuple(sum(matrix[j::c]) for j in range(c))
            if rows != counts[first] or columns != counts[second]:
                return f"the joint votes of models {first} and {second} do not add up to their counts"
    slack = samples * (k + 1) * ROUNDING
    for name, parts in (("agreement", statement.agreement), ("entropy", statement.entropy)):
        if any(not -slack <= part <= samples * SCALE + slack for part in parts):
            return f"a part of the {name} is negative or more than all of it"
        if sum(parts) > samples * SCALE + slack:
            return f"the parts of the {name} are more than all of it"
    return ""
