"""What the tests of commands share: a clean environment, and a home on which a daemon with a fake node runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from finode.daemon.home import init_home
from tests.fakes.api import serving_in_thread
from tests.fakes.node import FakeNode


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("FINODE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def home(tmp_path: Path, node: FakeNode) -> Iterator[Path]:
    """A home on which a daemon (with a fake node) runs."""
    path = tmp_path / "home"
    init_home(path, "Clinic South")
    with serving_in_thread(node) as bound:
        (path / "api.json").write_text(json.dumps({"url": f"http://{bound}", "pid": os.getpid()}))
        yield path
