from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from finode.errors import ModelError
from finode.models.onnx_import import import_onnx
from finode.models.torch_export import export_module
from tests.models.building import answer, ops
from tests.models.test_torch_modules import trained


@pytest.mark.slow
@pytest.mark.parametrize("name", ["residual-shared-batch-norm", "pre-activation"])
def test_module_to_plan(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    module = trained(name).train()
    model = import_onnx(export_module(module, torch.randn(1, 3, 8, 8)))
    assert module.training
    assert capfd.readouterr() == ("", "")
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = module.eval()(x).double().numpy()
    np.testing.assert_allclose(answer(model, x.double().numpy()), expected, atol=1e-5, rtol=1e-5)
    assert "global_average_pool" in ops(model) or model.softmax_at_end


@pytest.mark.slow
def test_a_module_that_branches_on_values_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2 if x.sum() > 0 else x

    module = Branching()
    with pytest.raises(ModelError, match="torch cannot export Branching to ONNX"):
        export_module(module, torch.randn(2, 4))
    assert module.training


def test_an_example_without_a_batch_is_refused() -> None:
    with pytest.raises(ModelError, match="give a batch"):
        export_module(nn.Identity(), torch.zeros(4))


@pytest.mark.slow
def test_the_registry_and_inputs_need_neither_torch_nor_onnx() -> None:
    program = (
        "import sys, finode.models.registry, finode.models.preprocess, finode.models.service_files;"
        "print([name for name in ('torch', 'onnx', 'PIL') if name in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "[]"
    program = "import sys, finode.models.adding, finode.models.torch_export; print('torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert shown.stdout.strip() == "False"
