"""Whether private answers name the same classes as plaintext ones: five trained models, a thousand digits.

The models are the demo's (`finode.testnet.digits`): of five architectures, trained on uneven parts of scikit-learn's
digits. What is right is what torch computed with the trained modules, before they were exported and imported: so the
import is compared as well. A digit whose two best classes are nearer than `NEAR_TIE` in plaintext is left out, for
which of them wins is then a matter of the last digits; every other one must come out the same.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from finode.client import Answer
from finode.errors import FinodeError
from finode.testnet.demo import NEAR_TIE
from finode.testnet.digits import prepare

DIGITS: Final = 1000
OWNERS: Final = 5
BATCH: Final = 64
"""Digits of one query."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Digits:
    """Models on disk, digits (n, 1, 8, 8), and the plaintext vote's probabilities (n, 10) of them."""

    SERVICE: ClassVar[str] = "digits"

    models: tuple[Path, ...]
    inputs: Floats = field(repr=False)
    probabilities: Floats = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How many private answers name the plaintext's class, of those `compared`; `left_out` are near ties.

    `device` is where parties and dealer computed. `asked` is less than all where the engine is slow; `error` says why
    there is no figure at all.
    """

    engine: str
    link: str
    device: str = "cpu"
    asked: int = 0
    compared: int = 0
    agreeing: int = 0
    left_out: int = 0
    max_error: float = 0.0
    error: str = ""

    @property
    def holds(self) -> bool:
        return not self.error and self.agreeing == self.compared > 0


def train(directory: Path, count: int = DIGITS) -> Digits:
    """Train the models and choose the digits; raise `ConfigError` where what that needs is not installed."""
    federation = prepare(directory, owners=OWNERS, held_out=count)
    paths = tuple(model.path for model in federation.models)
    return Digits(paths, federation.inputs, federation.plaintext_probabilities)


async def compare(
    digits: Digits,
    ask: Callable[[Floats], Awaitable[Answer]],
    goes_on: Callable[[], bool],
    *,
    engine: str,
    link: str,
    on_step: Callable[[int, int], None],
) -> Agreement:
    """Ask for the digits, `BATCH` at a time and as long as `goes_on`, and compare what comes back."""
    found: list[Answer] = []
    asked = 0
    try:
        while asked < len(digits.inputs) and (not asked or goes_on()):
            on_step(asked, len(digits.inputs))
            found.append(await ask(digits.inputs[asked : asked + BATCH]))
            asked += len(found[-1].labels)
    except FinodeError as error:
        return Agreement(engine=engine, link=link, error=error.message)
    private = np.concatenate([_probabilities(answer) for answer in found])
    labels = np.concatenate([answer.label_indices for answer in found])
    expected = digits.probabilities[:asked]
    ranked = np.sort(expected, axis=1)
    clear = ranked[:, -1] - ranked[:, -2] > NEAR_TIE
    return Agreement(
        engine=engine,
        link=link,
        asked=asked,
        compared=int(clear.sum()),
        agreeing=int((labels == expected.argmax(axis=1))[clear].sum()),
        left_out=int((~clear).sum()),
        max_error=float(np.abs(private - expected).max()),
    )


def _probabilities(answer: Answer) -> Floats:
    if answer.probabilities is None:
        raise FinodeError("the benchmark asked for probabilities, and the answer has none")
    return answer.probabilities
