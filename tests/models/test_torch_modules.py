"""Whole torch modules: exported, imported, and run as a plan they answer as torch does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from finode.models.onnx_import import import_onnx
from tests.models.building import answer, ops, torchscript_export


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.left = nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.norm(self.left(x)) + x)
        x = nn.functional.adaptive_avg_pool2d(x, 1)
        logits: torch.Tensor = self.head(x.view(x.size(0), -1))
        return logits


class PreActivation(nn.Module):
    """Batch-norm before anything that it could be folded into, and a weight added to every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.position = nn.Parameter(torch.randn(4, 4, 4))
        self.head = nn.Linear(64, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.conv(torch.relu(self.norm(x))) + self.position)
        return torch.softmax(self.head(torch.flatten(x, 1)), dim=-1)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "linear-softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 5), nn.Softmax(dim=1)),
    "mlp-batch-norm-dropout": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5, bias=False)
    ),
    "conv-strided-dilated-grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 6, (3, 2), stride=(2, 1), padding=(2, 1), dilation=(2, 1), groups=3),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.Conv2d(6, 4, 1, bias=False),
        nn.Flatten(),
        nn.LazyLinear(7),
    ),
    "max-pool-ceil": lambda: nn.Sequential(
        nn.MaxPool2d(3, stride=2, padding=1), nn.MaxPool2d(3, stride=2, ceil_mode=True), nn.Flatten(), nn.LazyLinear(3)
    ),
    "average-pool-with-pads": lambda: nn.Sequential(
        nn.AvgPool2d(3, stride=2, padding=1, count_include_pad=True),
        nn.ReLU(),
        nn.AvgPool2d(2, padding=1, count_include_pad=False),
        nn.Flatten(start_dim=-3),
        nn.LazyLinear(3),
    ),
    "residual-shared-batch-norm": Residual,
    "pre-activation": PreActivation,
    "unflatten": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(192, 32), nn.Unflatten(1, (2, 4, 4)), nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(12, 3)
    ),
}


def trained(name: str) -> nn.Module:
    """Return a module whose batch-norms have seen data."""
    torch.manual_seed(3)
    module = MODULES[name]()
    with torch.no_grad():
        for _ in range(3):
            module(torch.randn(8, 3, 8, 8) * 2 + 1)
        for layer in module.modules():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 2)
                layer.bias.normal_()
    return module.eval()


def assert_same(module: nn.Module, data: bytes) -> list[str]:
    model = import_onnx(data)
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        expected = module(x).double().numpy()
    np.testing.assert_allclose(answer(model, x.double().numpy()), expected, atol=1e-5, rtol=1e-5)
    assert model.plan.weights == tuple(
        type(spec)(name=spec.name, shape=model.weights[spec.name].shape) for spec in model.plan.weights
    )
    return ops(model)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize(("opset", "fold"), [(13, True), (17, False)])
def test_module_answers_as_in_torch(name: str, opset: int, fold: bool) -> None:
    module = trained(name)
    steps = assert_same(module, torchscript_export(module, torch.randn(2, 3, 8, 8), opset, fold=fold))
    # Only the batch-norm that follows nothing linear remains a step.
    assert ("scale" in steps) == (name == "pre-activation")


def test_view_by_the_batch_size_in_an_old_opset() -> None:
    module = trained("residual-shared-batch-norm")
    assert "add" in assert_same(module, torchscript_export(module, torch.randn(2, 3, 8, 8), 9))


def test_same_architecture_gives_the_same_plan_whatever_the_weights() -> None:
    plans = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
        plans.append(import_onnx(torchscript_export(module.eval(), torch.randn(2, 3, 8, 8), 17)).plan)
    assert plans[0].digest() == plans[1].digest()
