from __future__ import annotations

import numpy as np
import pytest

from finode.errors import LocalError
from finode.smpc.randomness import Stream, fresh_seed, subkey
from tests.smpc.statistics import IMPROBABLE, chi_square


def test_subkeys_differ_for_every_path_and_seed() -> None:
    seed, other = fresh_seed(), fresh_seed()
    paths: list[tuple[str | bytes | int, ...]] = [("a",), ("a", "b"), ("ab",), ("a", 1), ("a", b"b", "c"), ()]

    keys = {subkey(s, *path) for s in (seed, other) for path in paths}

    assert len(keys) == 2 * len(paths)
    assert subkey(seed, "a", "b") == subkey(seed, "a", b"b")


def test_a_seed_of_another_size_is_refused() -> None:
    with pytest.raises(LocalError, match="32 bytes"):
        subkey(b"short", "a")


def test_a_stream_does_not_depend_on_how_it_is_read() -> None:
    key = fresh_seed()
    sizes = [1, 300_000, 0, 7, 600_000]

    whole = Stream(key).read(sum(sizes))
    stream = Stream(key)
    pieces = np.concatenate([stream.read(size) for size in sizes])

    assert np.array_equal(whole, pieces)
    assert "..." in repr(stream)


def test_a_stream_is_uniform_and_its_tags_are_independent() -> None:
    seed = fresh_seed()

    first, second = (Stream(subkey(seed, tag)).read(1 << 18) for tag in ("a", "b"))

    assert chi_square(first.tobytes()) < IMPROBABLE
    assert chi_square((first ^ second).tobytes()) < IMPROBABLE
