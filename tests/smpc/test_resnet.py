"""A ResNet-18 for images of 32 x 32, whole, on shares of two parties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finode.models.float_run import probabilities
from finode.models.onnx_import import import_onnx
from finode.smpc.engine import Program
from finode.smpc.simulation import simulate_program
from finode.testnet.bench import models


@pytest.mark.slow
def test_a_resnet18_on_shares_answers_as_in_the_clear(tmp_path: Path) -> None:
    models.write_model("resnet18", 1, tmp_path / "model.onnx")
    model, x = import_onnx(tmp_path / "model.onnx"), models.inputs(1)
    program = Program(
        plans=(model.plan,),
        deployments=(b"d" * 32,),
        parties=2,
        batch=1,
        fractional_bits=16,
        vote="soft",
        reveal="probabilities",
    )

    done = simulate_program(program, [model.weights], x)

    real = probabilities(model.plan, model.weights, x)
    assert done.output.probabilities is not None
    # The classes' probabilities differ, so that an error would show.
    assert np.ptp(real) > 0.05
    assert np.abs(done.output.probabilities - real).max() < 0.002
