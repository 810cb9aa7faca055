"""A home: what `finode init` makes, its lock, and where its daemon listens."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from finode import config, errors
from finode.config import Config
from finode.daemon import home as homes
from finode.daemon.home import init_home, is_fresh, lock_home, node_secret, render_config, write_api_address
from finode.identity import Identity
from finode.net.roster import load_roster


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FINODE_"):
            monkeypatch.delenv(name)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_init_makes_a_private_home(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    assert is_fresh(home)

    identity = init_home(home, 'Clinic "North"')

    assert not is_fresh(home)
    assert mode(home) == 0o700
    assert mode(home / "identity.key") == 0o600
    assert mode(home / "node.secret") == 0o600
    assert mode(home / "finode.toml") == 0o600
    assert Identity.load(home / "identity.key").peer_id == identity.peer_id
    assert load_roster(home / "roster.toml") == {identity.peer_id: 'Clinic "North"'}
    assert config.load(home).node.organization == 'Clinic "North"'
    assert len(node_secret(home)) == 32


def test_an_organization_without_a_name_gets_one_of_its_own(tmp_path: Path) -> None:
    identity = init_home(tmp_path / "a", "")

    name = f"org-{identity.peer_id[-8:]}"
    assert load_roster(tmp_path / "a" / "roster.toml") == {identity.peer_id: name}
    assert config.load(tmp_path / "a").node.organization == name


@pytest.mark.parametrize("name", ["identity.key", "finode.toml", "roster.toml", "node.secret"])
def test_init_never_overwrites(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"mine")

    with pytest.raises(errors.ConfigError, match=f"{name} exists already"):
        init_home(tmp_path, "Clinic")

    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_bytes() == b"mine"


def test_a_configuration_that_was_put_there_is_kept_for_start(tmp_path: Path) -> None:
    (tmp_path / "finode.toml").write_text('[node]\norganization = "Clinic"\n')

    init_home(tmp_path, "Clinic", keep_config=True)

    assert (tmp_path / "finode.toml").read_text() == '[node]\norganization = "Clinic"\n'
    assert not is_fresh(tmp_path)


@pytest.mark.parametrize("name", ["x" * 65, "two\nlines", "\x00"])
def test_a_name_that_is_none_is_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(errors.ConfigError, match="not an organization's name"):
        init_home(tmp_path / "home", name)

    assert not (tmp_path / "home").exists()


def test_a_home_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(errors.ConfigError, match="cannot make the home"):
        init_home(tmp_path / "file" / "home", "Clinic")


def test_the_settings_written_are_all_there_are_at_their_defaults(tmp_path: Path) -> None:
    text = render_config({"node": {"organization": "Clinic", "roles": ("party",)}})

    uncommented = "".join(
        line.removeprefix("# ")
        if " = " in line and line.startswith("# ") and line[2:].split(" = ")[0].isidentifier()
        else line
        for line in text.splitlines(keepends=True)
    )
    found = tomllib.loads(uncommented)
    sections = {name for name in Config.model_fields if name != "home"}
    assert set(found) == sections
    for name in sections:
        section = getattr(Config(), name)
        assert set(found[name]) == set(type(section).model_fields), name
    assert tomllib.loads(text)["node"] == {"organization": "Clinic", "roles": ["party"]}
    (tmp_path / "finode.toml").write_text(uncommented.replace('roles = ["party"]', "roles = []"))
    loaded = config.load(tmp_path)
    assert loaded.model_dump(exclude={"home", "node"}) == Config().model_dump(exclude={"home", "node"})


def test_every_setting_says_why() -> None:
    lines = render_config({}).splitlines()

    for before, line in itertools.pairwise(lines):
        if line.startswith("# ") and line[2:].split(" = ")[0].isidentifier() and " = " in line:
            assert before.startswith("# "), line


def test_a_dealers_secret_open_to_others_or_torn_is_refused(tmp_path: Path) -> None:
    secret = node_secret(tmp_path)
    assert node_secret(tmp_path) == secret
    path = tmp_path / "node.secret"

    path.chmod(0o640)
    with pytest.raises(errors.ConfigError, match="can be read by others"):
        node_secret(tmp_path)
    path.chmod(0o600)
    path.write_bytes(secret[:7])
    with pytest.raises(errors.ConfigError, match="7 bytes"):
        node_secret(tmp_path)


def test_a_second_daemon_on_a_home_is_refused_by_name(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from finode.daemon.home import lock_home\n"
        "with lock_home(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(errors.HomeInUse) as caught, lock_home(tmp_path):
            pass
        assert str(other.pid) in caught.value.message
        assert str(tmp_path) in caught.value.message
        other.kill()  # no clean-up of its own
        other.wait()
    with lock_home(tmp_path):
        assert (tmp_path / "lock").read_text().strip() == str(os.getpid())
    with lock_home(tmp_path):
        pass


def test_the_api_address_is_written_and_removed(tmp_path: Path) -> None:
    write_api_address(tmp_path, "0.0.0.0:4242")
    write_api_address(tmp_path, "127.0.0.1:4242")

    found = homes.read_api_address(tmp_path)
    assert found is not None
    assert (found.url, found.pid) == ("http://127.0.0.1:4242", os.getpid())
    assert mode(tmp_path / "api.json") == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["api.json"]
    homes.remove_api_address(tmp_path)
    homes.remove_api_address(tmp_path)
    assert homes.read_api_address(tmp_path) is None
