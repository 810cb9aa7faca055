"""The table of gates in docs/smpc.md is what the gates' code and their dealt bytes say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/smpc.md").read_text(encoding="utf-8")


def stated(name: str = "costs") -> dict[str, tuple[int, int, int]]:
    table = TEXT.partition(f"<!-- {name} -->")[2].strip().split("\n\n")[0]
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]
    return {name: (int(rounds), int(bits), int(size)) for name, rounds, bits, size in rows}


@pytest.mark.slow
def test_the_table_of_statistics_is_what_runs_cost() -> None:
    import numpy as np

    from finode.smpc.lowering import lower
    from finode.smpc.simulation import exchange
    from tests.smpc import models
    from tests.smpc.parties import committee_of

    makers, found = [models.mlp(seed) for seed in range(5)], {}
    for vote in ("soft", "weighted", "spectral", "entropy", "hard"):
        weights = (1,) * 5 if vote == "weighted" else ()
        program = models.program_of(makers, vote=vote, vote_weights=weights, statistics=True)
        committee = committee_of(program, makers, np.zeros((1, 1, 8, 8)))
        cost = exchange(exchange([committee.run(i) for i in range(2)]).rests).costs[0]
        rest = lower(program).rest
        assert rest is not None
        found[vote] = (cost.rounds, cost.bits, sum(size for _, size in rest.correction_sizes()))

    assert stated("contribution") == found


@pytest.mark.slow
def test_the_table_of_gates_is_what_the_code_gives() -> None:
    from finode.smpc.augmentation import SquaredNorm, root
    from finode.smpc.circuit import Circuit, Node
    from finode.smpc.gates import spline
    from finode.smpc.gates.base import Gate
    from finode.smpc.gates.linear import Mask
    from finode.smpc.gates.log_softmax import Log, LogSoftmax
    from finode.smpc.gates.maximum import ArgMax, Winners
    from finode.smpc.gates.piecewise import PiecewiseLinear, clip, leaky
    from finode.smpc.gates.pool import MaxPool, Window
    from finode.smpc.gates.product import MatrixProduct
    from finode.smpc.gates.softmax import Exp, Multiply, Reciprocal, Softmax
    from finode.smpc.gates.spline import Spline
    from finode.smpc.gates.truncate import Truncate, TruncateRelu

    # A thousand of each, so that the alignment of single pieces to 8 bytes does not count.
    many, f, bits = (1000,), 16, 28
    window = Window(kernel=(2, 2), strides=(2, 2), pads=(0, 0, 0, 0))
    rows, row = (1000, 10), (1000, 1)
    gates: dict[str, Gate[Any]] = {
        "mask of a linear layer's input": Mask(many),
        "truncate": Truncate(many, f),
        "truncate + ReLU": TruncateRelu(many, f, bits),
        "leaky ReLU": PiecewiseLinear(many, f, bits, leaky(6554, 1 << f)),
        "clip between two bounds": PiecewiseLinear(many, f, bits, clip(0, 6 << f)),
        "2x2 max-pool + truncate + ReLU, one window": MaxPool((1, 10, 1, 20, 20), window, f, bits, relu=True),
        "GELU": Spline(many, f, f, bits, spline.GELU),
        "erf": Spline(many, f, f, bits, spline.ERF),
        "sigmoid": Spline(many, f, f, bits, spline.SIGMOID),
        "tanh": Spline(many, f, f, bits, spline.TANH),
        "exp, as an operator of a model": Spline(many, f, f, bits, spline.EXP),
        "exp of a distance, inside of softmax": Exp(many, f, bits),
        "product of two secrets": Multiply(many, many),
        "product of two 8x8 matrices, whole": MatrixProduct((1000, 8, 8), (1000, 8, 8)),
        "reciprocal in [1, 10], one row": Reciprocal(row, 10),
        "logarithm in [1, 10], one row": Log(row, 10),
        "largest of 10, one row": ArgMax(rows, f, bits, Winners.ONE_HOT),
        "softmax over 10, one row": Softmax(rows, f, f, bits),
        "log-softmax over 10, one row": LogSoftmax(rows, f, f, bits),
        "squared norm of 10, one row": SquaredNorm(rows),
        "root of a squared norm of 10, one row": PiecewiseLinear(many, 20, 41, root(28, -1.0)),
    }
    found = {}
    for name, gate in gates.items():
        cost = gate.cost()
        ((_, size),) = Circuit(("x",), (Node("g", gate, ("x",)),), "g").correction_sizes()
        assert cost.bits % 1000 == 0, name
        found[name] = (cost.rounds, cost.bits // 1000, round(size / 1000))

    assert stated() == found


def test_the_worked_example_uses_the_curve_of_the_code() -> None:
    from finode.smpc.gates.spline import GELU

    assert f"{1 << GELU.index_bits} nodes\nh = 1/{1 << GELU.step_bits} apart from {GELU.start:g} on" in TEXT
    assert f"scale 2^{GELU.output_bits}" in TEXT


def test_every_module_of_gates_and_every_file_named_exists() -> None:
    for name in (
        "linear",
        "truncate",
        "compare",
        "piecewise",
        "pool",
        "maximum",
        "lookup",
        "spline",
        "log_softmax",
        "statistics",
    ):
        assert f"`{name}.py`" in TEXT.replace("`, `", "` `") or f"{name}.py" in TEXT
        assert (ROOT / f"finode/smpc/gates/{name}.py").is_file()
    for path in ("tests/smpc/test_functions.py", "tests/smpc/test_gate_secrecy.py", "tests/smpc/test_random_plans.py"):
        assert path in TEXT
        assert (ROOT / path).is_file()
