"""What the parties see of each gate: frames, and what they open with them, are uniform whatever the input, also in all
rounds together: no mask serves twice."""

from __future__ import annotations

import importlib
import pkgutil
import sys
from typing import Any

import pytest
import torch

import finode.smpc
from finode.smpc.frames import Kind
from finode.smpc.gates import maximum
from finode.smpc.gates.base import Gate
from finode.smpc.simulation import simulate
from tests.smpc.gate_cases import CASES
from tests.smpc.joint import SITES, Opened, leaks, recorded
from tests.smpc.openings import opened, payload
from tests.smpc.statistics import IMPROBABLE, chi_square


@pytest.fixture
def block(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(maximum, "MAX_BLOCK", CASES[name].max_block)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("parties", [2, 3])
@pytest.mark.parametrize("name", CASES)
def test_frames_and_opened_values_are_uniform_whatever_the_input(name: str, parties: int) -> None:
    case = CASES[name]

    for inputs in case.runs if parties == 2 else case.runs[:1]:
        done = simulate(case.gate, *inputs, parties=parties)
        seen = [payload(frames[sender]) for frames in done.frames for sender in range(parties)]
        assert chi_square(b"".join(seen)) < IMPROBABLE
        assert all(chi_square(data) < IMPROBABLE for data in (*seen, *opened(done.frames)) if len(data) > 4000)


@pytest.mark.usefixtures("block")
@pytest.mark.parametrize("name", CASES)
def test_no_mask_serves_twice(name: str) -> None:
    case = CASES[name]

    for inputs in case.runs:
        with recorded() as seen:
            simulate(case.gate, *inputs, parties=2)
        assert sum(opening.bits for opening in seen) == case.gate.cost().bits
        assert leaks(seen) == []


@pytest.mark.parametrize("name", CASES)
def test_no_mask_serves_in_two_runs(name: str) -> None:
    case = CASES[name]

    # Equal inputs under equal masks would open equal values.
    runs = []
    for _ in range(2):
        with recorded() as seen:
            simulate(case.gate, *case.runs[0], parties=2)
        runs.append([opening.words(SITES).tobytes() for opening in seen])

    assert all(one != other for one, other in zip(*runs, strict=True))


def gate_classes() -> set[type[Gate[Any]]]:
    """All gates of the engine."""
    for module in pkgutil.walk_packages(finode.smpc.__path__, "finode.smpc."):
        if not module.name.startswith("finode.smpc.crypten"):
            importlib.import_module(module.name)
    found, todo = set[type[Gate[Any]]](), Gate.__subclasses__()
    while todo:
        kind = todo.pop()
        todo.extend(kind.__subclasses__())
        # A dataclass with slots is made anew: what was there before it goes by the same name for a while.
        if getattr(sys.modules[kind.__module__], kind.__name__, None) is kind:
            found.add(kind)
    return {kind for kind in found if kind.__module__.startswith("finode.")}


def test_every_gate_that_opens_anything_is_looked_at() -> None:
    opens = {
        kind
        for kind in gate_classes()
        if kind.cost is not Gate.cost or any(name.startswith("open") for name in kind.run.__code__.co_names)
    }
    known = gate_classes()

    looked_at = {next(kind for kind in type(case.gate).__mro__ if kind in known) for case in CASES.values()}
    assert looked_at == opens
    assert all(case.gate.cost().bits for case in CASES.values())


# ---- that a relation between openings is found


def openings(*names: str) -> list[Opened]:
    """Fresh openings for two values of each site: elements, bits or residues mod 8."""
    made = []
    for index, name in enumerate(names):
        kind, width = {"element": (Kind.ELEMENTS, 64), "bit": (Kind.BITS, 1), "residue": (Kind.RESIDUES, 3)}[name]
        values = torch.randint(-(2**63), 2**63 - 1, (2, SITES))
        made.append(Opened(f"{name}{index}", kind, width, values if width == 64 else values & ((1 << width) - 1)))
    return made


def test_fresh_masks_are_found_fresh() -> None:
    for _ in range(5):
        assert leaks(openings("element", "bit", "residue", "element", "bit", "bit", "residue")) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda a, b, c, d: (a, a + 5, c, d),
        lambda a, b, c, d: (a, 5 - a, c, d),
        lambda a, b, c, d: (a, a + torch.randint(0, 1 << 50, a.shape), c, d),
        lambda a, b, c, d: (a, torch.stack((b[0], b[0] + 3)), c, d),
        lambda a, b, c, d: (a, torch.cat((b[:, :700], b[:, : SITES - 700]), 1), c, d),
        lambda a, b, c, d: (a, torch.full_like(b, 7), c, d),
        lambda a, b, c, d: (a, b, c, c ^ 1),
        lambda a, b, c, d: (a, b, c, c ^ (torch.rand(c.shape) < 0.25)),
        lambda a, b, c, d: (a, b, torch.stack((c[0], c[0])), d),
        lambda a, b, c, d: (a, b, c, c ^ (a >> 17 & 1) ^ (b >> 5 & 1)),
    ],
    ids=[
        "equal",
        "negated",
        "near",
        "within a site",
        "between sites",
        "constant",
        "bits",
        "often",
        "bits of a site",
        "three",
    ],
)
def test_a_relation_between_openings_is_found(spoil) -> None:  # type: ignore[no-untyped-def]
    made = openings("element", "element", "bit", "bit")

    spoilt = spoil(*(opening.values for opening in made))

    assert leaks([Opened(o.name, o.kind, o.width, value) for o, value in zip(made, spoilt, strict=True)])
