from __future__ import annotations

from pathlib import Path

import pytest

from tests.models.building import small_model


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A model of (1, 2, 2) images and 3 classes."""
    path = tmp_path / "small.onnx"
    path.write_bytes(small_model())
    return path
