"""Products by limbs against torch's own int64 products, bit for bit: real layers, extreme elements, any shapes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from finode.smpc import ring, ring_products
from finode.smpc.ring_products import LARGEST, LONGEST_SUM, by_limbs, limbs, matmul

EXTREMES = (0, 1, -1, LARGEST, -LARGEST, (1 << 63) - 1, -(1 << 63), 1 << 62, (1 << 21) - 1, 1 << 21, -(1 << 43))
ELEMENTS = st.one_of(st.sampled_from(EXTREMES), st.integers(-(1 << 63), (1 << 63) - 1))


def _draw(*shape: int, seed: int = 0) -> Tensor:
    """Uniform elements, every seventh of them an extreme one."""
    x = torch.randint(-(1 << 63), (1 << 63) - 1, shape, generator=torch.Generator().manual_seed(seed))
    flat = x.view(-1)
    flat[::7] = torch.tensor(EXTREMES).repeat(1 + len(flat) // len(EXTREMES))[: len(flat[::7])]
    return x


@given(st.lists(ELEMENTS, min_size=1, max_size=50))
@settings(deadline=None)
def test_limbs_are_small_and_add_up(elements: list[int]) -> None:
    parts = limbs(torch.tensor(elements))

    assert [part.dtype for part in parts] == [torch.float64] * 3
    assert all(float(part.abs().max()) <= 1 << bits for part, bits in zip(parts, (21, 21, 19), strict=True))
    for place, element in enumerate(elements):
        total = sum(int(part[place]) << (22 * i) for i, part in enumerate(parts))
        assert (total - element) % (1 << 64) == 0


def test_the_largest_limbs_and_the_longest_sum_fill_float64_exactly() -> None:
    assert [float(part) for part in limbs(torch.tensor(LARGEST))] == [-(2.0**21), -(2.0**21), -(2.0**19)]
    assert LONGEST_SUM * (1 << 21) ** 2 == 1 << 53


@given(data=st.data(), rows=st.integers(1, 3), inner=st.integers(0, 4), columns=st.integers(1, 3))
@settings(deadline=None)
def test_any_small_product(data: st.DataObject, rows: int, inner: int, columns: int) -> None:
    def matrix(*shape: int) -> Tensor:
        count = shape[0] * shape[1]
        return torch.tensor(data.draw(st.lists(ELEMENTS, min_size=count, max_size=count)), dtype=torch.int64).view(
            shape
        )

    a, b = matrix(rows, inner), matrix(inner, columns)

    assert torch.equal(by_limbs(a, b), a @ b)


@pytest.mark.parametrize("inner", [1, LONGEST_SUM - 1, LONGEST_SUM, LONGEST_SUM + 1, 2 * LONGEST_SUM + 3])
@pytest.mark.parametrize("element", [LARGEST, -(1 << 63), (1 << 63) - 1, -1])
def test_sums_of_the_same_extreme_elements(element: int, inner: int) -> None:
    a, b = torch.full((3, inner), element), torch.full((inner, 2), LARGEST)

    assert torch.equal(by_limbs(a, b), a @ b)
    assert torch.equal(by_limbs(b.T, a.T), b.T @ a.T)


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 1, 3, 5), (1, 4, 5, 2)), ((3, 5), (2, 5, 1)), ((1, 1, 2, 4, 9), (1, 3, 2, 9, 4)), ((2, 0, 5), (2, 5, 3))],
)
def test_leading_dimensions_broadcast_as_torch_has_them(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    a, b = _draw(*left), _draw(*right, seed=1)

    assert torch.equal(by_limbs(a, b), a @ b)


# Channels in and out, kernel, stride, side: the first, a middle and the last convolution.
LAYERS = {
    "lenet-1": (3, 6, 5, 1, 32),
    "lenet-2": (6, 16, 5, 1, 14),
    "resnet18-1": (3, 64, 3, 1, 32),
    "resnet18-8": (64, 128, 3, 2, 32),
    "resnet18-17": (512, 512, 3, 1, 4),
    "resnet50-1": (3, 64, 7, 2, 56),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_convolutions_of_real_layers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, out, kernel, stride, side = LAYERS[name]
    x, weight = _draw(1, 1, inside, side, side), _draw(1, out, inside, kernel, kernel, seed=1)
    how = (stride,) * 2, (kernel // 2,) * 4, (1, 1), 1
    expected = ring.convolve(x, weight, *how)

    monkeypatch.setattr(ring, "matmul", by_limbs)

    assert torch.equal(ring.convolve(x, weight, *how), expected)


@pytest.mark.parametrize(("inner", "out"), [(400, 120), (84, 10), (512, 1000)])
def test_linear_layers(inner: int, out: int) -> None:
    x, weight = _draw(2, 4, inner), _draw(2, out, inner, seed=1)

    assert torch.equal(by_limbs(x, weight.transpose(1, 2)), x @ weight.transpose(1, 2))


def test_the_processor_multiplies_int64_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(ring_products, "by_limbs")

    assert matmul(torch.tensor([[3, -1]]), torch.tensor([[5], [1 << 63 - 1]])).tolist() == [[15 - (1 << 62)]]
