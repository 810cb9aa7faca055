"""One party's piece of a secret: the values that travel between gates.

A `Share` holds a piece of an additive sharing over Z_2^64; what is public or linear is done on it without speaking to
anybody. Its value never shows: not in `repr`, and not in a condition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from finode.errors import LocalError


@dataclass(frozen=True, slots=True, repr=False, eq=False)
class Share:
    """A piece of `[x]`: int64 elements of Z_2^64. `first` is whether party 0 holds it: it alone adds public terms."""

    data: Tensor
    first: bool

    def __repr__(self) -> str:
        return f"Share(shape={tuple(self.data.shape)})"

    def __bool__(self) -> NoReturn:
        raise LocalError("the value of a share is secret: no condition may depend on it")

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.data.shape)

    def __add__(self, other: Share) -> Share:
        return Share(self.data + other.data, self.first)

    def __sub__(self, other: Share) -> Share:
        return Share(self.data - other.data, self.first)

    def scale(self, public: Tensor | int) -> Share:
        """Return the sharing of x * public."""
        return Share(self.data * public, self.first)

    def add_public(self, public: Tensor | int) -> Share:
        """Return the sharing of x + public."""
        return Share(self.data + public, True) if self.first else self

    def map(self, linear: Callable[[Tensor], Tensor]) -> Share:
        """Return the sharing of linear(x), for a map without a constant term: reshapes, sums, gathers."""
        return Share(linear(self.data), self.first)
