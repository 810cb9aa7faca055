from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finode.errors import ConfigError
from finode.models.float_run import probabilities
from finode.models.onnx_import import import_onnx
from finode.testnet.digits import MIN_CLASSES, MIN_SAMPLES, combined, prepare, split

LABELS = np.repeat(np.arange(10), 140)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("owners", [1, 2, 5])
def test_every_sample_goes_to_one_owner_and_each_gets_enough(owners: int, seed: int) -> None:
    parts = split(LABELS, owners=owners, alpha=0.5, seed=seed)
    assert len(parts) == owners
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(len(LABELS)))
    for part in parts:
        assert len(part) >= MIN_SAMPLES
        assert len(np.unique(LABELS[part])) >= MIN_CLASSES


def test_the_split_follows_from_the_seed_and_is_uneven() -> None:
    one, again, other = (split(LABELS, owners=5, alpha=0.5, seed=seed) for seed in (3, 3, 4))
    for left, right in zip(one, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert any(len(left) != len(right) or (left != right).any() for left, right in zip(one, other, strict=True))
    counts = np.stack([np.bincount(LABELS[part], minlength=10) for part in one])
    assert counts.max() > 3 * 140 / 5
    assert counts.min() < 140 / 5 / 3


@pytest.mark.parametrize(("owners", "alpha"), [(0, 0.5), (5, 0.0), (100, 0.5)])
def test_impossible_splits_are_refused(owners: int, alpha: float) -> None:
    with pytest.raises(ConfigError, match="split over"):
        split(LABELS, owners=owners, alpha=alpha, seed=0)


@pytest.mark.slow
def test_models_are_exported_and_their_plans_answer_as_the_plaintext_vote(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    federation = prepare(
        tmp_path / "models",
        owners=2,
        seed=1,
        held_out=8,
        organizations=["Northside", "Riverside"],
        on_progress=lambda *step: said.append(step),
    )
    assert [done for _, done, _ in said] == [1, 2]
    assert [trained.organization for trained in federation.models] == ["Northside", "Riverside"]
    assert federation.inputs.shape == (8, 1, 8, 8)
    assert 0 <= federation.inputs.min() < federation.inputs.max() <= 1
    assert federation.plaintext_accuracy() >= 0.75
    mean = np.zeros((8, 10))
    for trained in federation.models:
        assert sum(trained.label_counts) == trained.samples
        assert trained.accuracy > 0.3
        model = import_onnx(trained.path)
        assert model.input_shape == (1, 8, 8)
        mean += probabilities(model.plan, model.weights, federation.inputs) / 2
    np.testing.assert_allclose(mean, federation.plaintext_probabilities, atol=1e-5)
    assert import_onnx(federation.models[0].path).softmax_at_end
    assert not import_onnx(federation.models[1].path).softmax_at_end


def test_the_plaintext_votes() -> None:
    probabilities = np.array([[[0.9, 0.1]], [[0.4, 0.6]]])
    counts = [(9, 99), (99, 9)]

    assert np.allclose(combined(probabilities, counts, "soft"), [[0.65, 0.35]])
    first, second = np.array([0.09, 0.001]) / 0.091, np.array([0.004, 0.06]) / 0.064
    scores = np.array([10 * first[0] + 100 * second[0], 100 * first[1] + 10 * second[1]]) / 110
    assert np.allclose(combined(probabilities, counts, "prior"), [scores / scores.sum()])
