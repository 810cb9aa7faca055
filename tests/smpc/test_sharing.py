from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from finode.errors import InputError, ModelError, RangeExceeded, RemoteProtocolError
from finode.smpc import sharing
from tests.smpc import models
from tests.smpc.statistics import IMPROBABLE, chi_square


def test_encoding_rounds_to_nearest() -> None:
    ulp = 2.0**-16

    encoded = sharing.encode([1.0, -1.0, 0.4 * ulp, 0.6 * ulp, -0.6 * ulp, 2047.5], 16)

    assert encoded.tolist() == [65536, -65536, 0, 1, -1, 2047 * 65536 + 32768]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_with_its_place(bad: float) -> None:
    with pytest.raises(InputError, match=r"\[1, 0\]"):
        sharing.encode([[1.0, 2.0], [bad, 3.0]], 16)


@pytest.mark.parametrize("value", [2048.0, -2048.0, 1e300])
def test_what_does_not_fit_is_refused(value: float) -> None:
    with pytest.raises(RangeExceeded, match="2048"):
        sharing.encode([0.0, value], 16)
    assert sharing.encode([2048.0], 16, range_bits=12).tolist() == [2048 << 16]


def test_what_is_no_array_of_numbers_is_refused() -> None:
    with pytest.raises(InputError, match="real numbers"):
        sharing.encode(["a"], 16)


@pytest.mark.parametrize("parties", [2, 3, 5])
def test_shares_sum_to_the_value_and_are_uniform_and_fresh(parties: int) -> None:
    x = np.zeros((4, 3, 32, 32))

    shares = sharing.share_input(x, parties, 16)
    again = sharing.share_input(x, parties, 16)

    assert len(shares) == parties
    assert all(len(share) == sharing.input_bytes((3, 32, 32), 4) for share in shares)
    assert not np.frombuffer(b"".join(shares), dtype="<i8").reshape(parties, -1).sum(0).any()
    for share in (*shares, *again):
        assert chi_square(share) < IMPROBABLE
    assert len({*shares, *again}) == 2 * parties


def test_weights_are_shared_in_the_order_of_the_plan() -> None:
    maker = models.mlp(1)
    plan = maker.plan()

    shares = sharing.share_weights(plan, maker.weights, 3, 16)

    assert all(len(share) == sharing.share_bytes(plan) for share in shares)
    total = np.frombuffer(b"".join(shares), dtype="<i8").reshape(3, -1).sum(0)
    expected = np.concatenate([maker.weights[spec.name].reshape(-1) for spec in plan.weights])
    assert np.abs(total / 2.0**16 - expected).max() <= 2.0**-17


def test_missing_or_misshapen_weights_are_refused() -> None:
    maker = models.mlp(1)
    plan, name = maker.plan(), maker.plan().weights[0].name

    with pytest.raises(ModelError, match="missing"):
        sharing.share_weights(plan, {k: v for k, v in maker.weights.items() if k != name}, 2, 16)
    with pytest.raises(ModelError, match="shape"):
        sharing.share_weights(plan, maker.weights | {name: np.zeros(3)}, 2, 16)
    with pytest.raises(RangeExceeded, match=name):
        sharing.share_weights(plan, maker.weights | {name: maker.weights[name] + 2.0**20}, 2, 16)


def _shares(*rows: list[int]) -> list[bytes]:
    return sharing.share_elements(np.array(rows, dtype=np.int64), 2)


def test_probabilities_are_read_as_the_mean_of_the_models() -> None:
    program = models.program_of([models.mlp(0, 3), models.mlp(1, 3)], batch=2)
    one = 1 << 16

    output = sharing.reconstruct(program, _shares([one, one, 0], [0, one // 2, 3 * one // 2]))

    assert output.labels.tolist() == [0, 2]  # the first of two equal ones
    assert output.probabilities is not None
    assert output.probabilities.tolist() == [[0.5, 0.5, 0], [0, 0.25, 0.75]]
    assert output.top is not None
    assert output.top.tolist() == [0.5, 0.75]


def test_top1_and_label_give_no_more_than_they_say() -> None:
    makers = [models.mlp(0, 3), models.mlp(1, 3)]
    top1 = models.program_of(makers, reveal="top1", vote="hard")
    label = models.program_of(makers, reveal="label")

    first = sharing.reconstruct(top1, _shares([2, 1]))
    second = sharing.reconstruct(label, _shares([1]))

    assert first.labels.tolist() == [2]
    assert first.top is not None
    assert first.top.tolist() == [0.5]
    assert first.probabilities is None
    assert second.labels.tolist() == [1]
    assert second.top is None
    assert second.probabilities is None
    assert (sharing.output_bytes(top1), sharing.output_bytes(label)) == (16, 8)


def test_a_share_of_the_wrong_size_names_its_party() -> None:
    program = models.program_of([models.mlp(0, 3)])

    with pytest.raises(RemoteProtocolError, match="party 1") as caught:
        sharing.reconstruct(program, [bytes(24), bytes(16)])

    assert caught.value.peer == "1"
    with pytest.raises(InputError, match="1 output shares"):
        sharing.reconstruct(program, [bytes(24)])


def test_shares_that_add_up_to_nothing_sensible_are_no_answer() -> None:
    for reveal, row in (("probabilities", [1 << 40, 0, 0]), ("label", [3]), ("top1", [0, -5000])):
        program = models.program_of([models.mlp(0, 3)], reveal=reveal)
        with pytest.raises(RemoteProtocolError, match="add up"):
            sharing.reconstruct(program, _shares(row))


@pytest.mark.slow
def test_owners_and_queriers_need_no_torch() -> None:
    loaded = "import sys, finode.smpc.sharing, finode.smpc.engine, finode.smpc.plan; print('torch' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
