"""The example configurations load, and say what they are examples of."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from finode import config
from finode.config import Role

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("role", list(Role))
def test_each_role_has_an_example_that_loads(role: Role, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FINODE_"):
            monkeypatch.delenv(name)
    shutil.copy(CONFIGS / f"{role}.toml", tmp_path / "finode.toml")

    loaded = config.load(tmp_path)

    assert loaded.node.roles == (role,)
    assert loaded.node.organization
    assert loaded.roster_path == tmp_path.resolve() / "roster.toml"
    text = (CONFIGS / f"{role}.toml").read_text()
    assert text.startswith("# A")
    assert "finode start" in text
