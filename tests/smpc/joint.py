"""Whether what a run opens is uniform *jointly*: no two opened values, of whatever rounds, hide behind one mask.

One computation runs at many *sites* at once, independently and on equal inputs: every opened tensor has one axis of
that many sites, whatever its other axes are. If each opening has a mask of its own, then all bits that a site opens are
uniform and independent, and so are the sites. A mask that serves twice shows as a relation between two or more of these
bits, which holds at all sites or at more than half of them. Nothing here knows what a gate opens, or why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from unittest import mock

import numpy as np
import numpy.typing as npt
from torch import Tensor

from finode.smpc.frames import Kind, Opening
from finode.smpc.session import Session

SITES = 1511
"""A prime: no tensor has an axis of that size by accident, and a cyclic shift visits all sites."""
CHANCE = 1e-12
"""Of a false alarm, for each of the checks of a run: the suite makes some hundred of them."""

Bits = npt.NDArray[np.uint8]
Words = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True, eq=False)
class Opened:
    """One opening as all parties came to see it, in the shape of its share."""

    name: str
    kind: Kind
    width: int
    values: Tensor = field(repr=False)

    @property
    def bits(self) -> int:
        return self.width * self.values.numel()

    def words(self, sites: int) -> Words:
        """Return the values as (sites, values of a site)."""
        axes = [axis for axis, size in enumerate(self.values.shape) if size == sites]
        if len(axes) != 1:
            raise ValueError(f"{self.name}: {tuple(self.values.shape)} has {len(axes)} axes of {sites} sites, not one")
        return self.values.movedim(axes[0], 0).reshape(sites, -1).numpy().astype(np.int64).view(np.uint64)

    def ends(self, most: int) -> Words:
        """Return the places of the lowest and the highest `most` bits of a value."""
        return np.array(
            [place for place in range(self.width) if not most <= place < self.width - most], dtype=np.uint64
        )

    def planes(self, sites: int, most: int) -> Bits:
        """Return the lowest and the highest `most` bits of every value as (sites, bits of a site)."""
        digits = self.words(sites)[..., None] >> self.ends(most) & np.uint64(1)
        return digits.astype(np.uint8).reshape(sites, -1)


@contextmanager
def recorded() -> Iterator[list[Opened]]:
    """Yield a list that all openings of party 0 go to, in the order of their rounds, while the context lasts."""
    seen: list[Opened] = []
    original = Session.open_together

    async def spy(session: Session, *openings: Opening) -> list[Tensor]:
        values = await original(session, *openings)
        if session.first:
            for opening, value in zip(openings, values, strict=True):
                name = f"{session.path or 'run'} #{len(seen)} ({opening.kind.name.lower()})"
                seen.append(Opened(name, opening.kind, opening.width, value))
        return values

    with mock.patch.object(Session, "open_together", spy):
        yield seen


def margin(samples: int, comparisons: int) -> float:
    """Return what none of `comparisons` means of `samples` signs exceeds, but for one in 1 / CHANCE times.

    The mean of n independent uniform signs is beyond e with probability 2 exp(-n e^2 / 2) at most [Hoeffding 1963].
    So all of K means stay below e = sqrt(2 ln(2 K / CHANCE) / n), but for K times that: CHANCE. For a million means at
    1511 sites this is 0.24; a mask that serves twice has a mean of 1, or of what the hidden bits are unlike.
    """
    return math.sqrt(2 * math.log(2 * max(1, comparisons) / CHANCE) / samples)


def leaks(seen: Sequence[Opened], sites: int = SITES, most: int = 64) -> list[str]:
    """Return what shows that the openings are not jointly uniform; nothing if all masks are fresh.

    Where a site opens more bits than there are sites, look at the lowest and the highest `most` of each element: those
    alone show when an element's mask serves twice, as it is.
    """
    parts = [opened.planes(sites, most) for opened in seen]
    planes = np.concatenate(parts, axis=1)
    names = [opened.name for opened, part in zip(seen, parts, strict=True) for _ in range(part.shape[1])]
    if planes.shape[1] + 64 > sites:
        raise ValueError(f"{planes.shape[1]} bits of a site need more than {sites} sites")
    return [
        *_biased(planes, names),
        *_dependent(planes, names),
        *_shifted(planes, names),
        *_close(seen, sites),
        *_repeated(seen, sites),
    ]


def _signs(planes: Bits) -> npt.NDArray[np.float32]:
    return 1 - 2 * planes.astype(np.float32)


def _biased(planes: Bits, names: Sequence[str]) -> Iterator[str]:
    """Every bit is balanced, and so is the xor of every two bits of a site."""
    signs = np.concatenate([np.ones((len(planes), 1), np.float32), _signs(planes)], axis=1)
    mean = np.abs(np.triu(signs.T @ signs, 1)) / len(planes)
    count = planes.shape[1]
    found = np.argwhere(mean > margin(len(planes), count * (count + 1) // 2))
    pairs = {(int(i), int(j)) for i, j in found}
    told: set[tuple[str, ...]] = set()
    for i, j in sorted(pairs):
        told.add((names[j - 1],) if i == 0 else (names[i - 1], names[j - 1]))
    for what in sorted(told):
        yield f"a bit of {what[0]} is biased" if len(what) == 1 else f"bits of {what[0]} and {what[1]} go together"


def _dependent(planes: Bits, names: Sequence[str]) -> Iterator[str]:
    """No bit is the xor of any others, or of them and 1, at all sites: 64 sites more than bits make that 2^-64."""
    basis: dict[int, int] = {}
    told: set[str] = set()
    ones = np.ones((1, len(planes)), np.uint8)
    rows = np.packbits(np.concatenate([ones, planes.T]), axis=1)
    for row, name in zip(rows, ["", *names], strict=True):
        rest = int.from_bytes(row.tobytes())
        while rest and rest.bit_length() in basis:
            rest ^= basis[rest.bit_length()]
        if rest:
            basis[rest.bit_length()] = rest
        elif name not in told:
            told.add(name)
            yield f"a bit of {name} is the xor of others that are open"


def _shifted(planes: Bits, names: Sequence[str]) -> Iterator[str]:
    """No bit goes together with the same bit of the site at any distance.

    The products of neighbours on a circle of sites are independent but for one of them, so one site less counts.
    """
    sites = len(planes)
    spectrum = np.fft.rfft(_signs(planes), axis=0)
    mean = np.abs(np.fft.irfft(np.abs(spectrum) ** 2, n=sites, axis=0)[1:]) / sites
    bound = margin(sites - 1, mean.size) + 1 / sites
    for name in sorted({names[int(column)] for column in np.flatnonzero(mean.max(0) > bound)}):
        yield f"bits of {name} go together with those of other sites"


def _close(seen: Sequence[Opened], sites: int) -> Iterator[str]:
    """Differences and sums of any two opened elements, or residues of one width, are uniform in their lowest and in
    their highest byte: not constant, and not in a small range either."""
    for width in sorted({opened.width for opened in seen} - {1}):
        alike = [(opened, opened.words(sites)) for opened in seen if opened.width == width]
        words = np.concatenate([values for _, values in alike], axis=1).T
        names = [opened.name for opened, values in alike for _ in range(values.shape[1])]
        places = alike[0][0].ends(8)
        bound = margin(sites, len(words) ** 2 * len(places))
        told: set[str] = set()
        for i, one in enumerate(words):
            others = words[i + 1 :]
            for what, combined in (("difference", others - one), ("sum", others + one)):
                mean = np.stack([(combined >> place & np.uint64(1)).mean(-1) for place in places])
                for j in np.flatnonzero((np.abs(1 - 2 * mean) > bound).any(0)):
                    told.add(f"the {what} of values of {names[i]} and {names[i + 1 + int(j)]} is no uniform one")
        yield from sorted(told)


def _repeated(seen: Sequence[Opened], sites: int) -> Iterator[str]:
    """No element of 64 bits comes twice: some 10^5 of them would once in 10^9 runs."""
    elements = [opened.words(sites).reshape(-1) for opened in seen if opened.kind is Kind.ELEMENTS]
    if elements:
        words = np.concatenate(elements)
        if len(np.unique(words)) != len(words):
            yield "an opened element comes twice"
