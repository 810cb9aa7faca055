"""Augmented copies: behind their inputs, mirrored or noisy in proportion."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from finode.config import QuerierSection
from finode.node.augmenting import Floats, with_copies
from finode.node.batches import session_batch
from finode.wire.directory import Color, InputSpec

IMAGES = InputSpec(shape=(1, 2, 3), color=Color.GRAY)
ARRAYS = InputSpec(shape=(1, 2, 3))


def copies_of(spec: InputSpec, copies: int, **settings: Any) -> tuple[Floats, Floats]:
    x = np.random.default_rng(0).normal(size=(400, 1, 2, 3)) * np.linspace(0, 9, 400).reshape(-1, 1, 1, 1)
    rows = with_copies(x, copies, spec, QuerierSection(**settings), np.random.default_rng(1))
    return x, rows.reshape(400, 1 + copies, 1, 2, 3)


@pytest.mark.parametrize("spec", [IMAGES, ARRAYS])
def test_every_input_leads_its_copies(spec: InputSpec) -> None:
    x, rows = copies_of(spec, 3)

    assert np.array_equal(rows[:, 0], x)
    assert np.array_equal(rows[:, 1], x[..., ::-1]) == (spec is IMAGES)
    deviation = x.reshape(400, -1).std(axis=1)
    moved = (rows[:, 2:] - x[:, None]).reshape(400, -1)
    assert 0.09 < (moved[1:] / deviation[1:, None]).std() < 0.11
    assert not moved[0].any()


def test_what_the_settings_turn_off() -> None:
    x, rows = copies_of(IMAGES, 2, flip=False, noise=0.0)

    assert np.array_equal(rows, np.repeat(x[:, None], 3, axis=1))
    assert with_copies(x, 0, IMAGES, QuerierSection(), np.random.default_rng(1)) is x


def test_a_batch_has_room_for_all_copies() -> None:
    assert [session_batch("augmented", inputs, 64, 3) for inputs in (1, 2, 3, 9, 16)] == [4, 8, 16, 64, 64]
    assert session_batch("augmented", 9, 18, 3) == 16
