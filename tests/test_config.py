"""Settings: flags over environment over file over defaults, and errors that name the field and its source."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from finode.config import (
    CONFIG_NAME,
    IDENTITY_NAME,
    Config,
    Role,
    Section,
    Trust,
    is_loopback,
    load,
    split_host_port,
)
from finode.errors import ConfigError


def write(home: Path, text: str) -> Path:
    (home / CONFIG_NAME).write_text(text, encoding="utf-8")
    return home


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("FINODE_"):
            monkeypatch.delenv(name)


def test_without_a_file_there_are_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)

    assert config.home == tmp_path.resolve()
    assert config.federation.trust is Trust.ROSTER
    assert config.node.roles == ()
    assert is_loopback(split_host_port(config.api.bind)[0])
    assert config.identity_path == tmp_path.resolve() / IDENTITY_NAME
    assert config.roster_path == tmp_path.resolve() / "roster.toml"


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path,
        """
        [node]
        organization = "from the file"
        capacity = 11
        workers = 2
        """,
    )
    monkeypatch.setenv("FINODE_NODE__CAPACITY", "12")
    monkeypatch.setenv("FINODE_NODE__ORGANIZATION", "from the environment")

    config = load(tmp_path, {"node": {"organization": "from a flag"}})

    assert config.node.organization == "from a flag"
    assert config.node.capacity == 12
    assert config.node.workers == 2
    assert config.node.worker_threads == 1


def test_a_flag_in_a_section_leaves_the_rest_of_the_section(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, '[network]\nlisten = ["/ip4/127.0.0.1/tcp/0"]\n')
    monkeypatch.setenv("FINODE_NETWORK__DIAL_TIMEOUT_S", "2.5")

    config = load(tmp_path, {"network": {"bootstrap": ["/ip4/127.0.0.1/tcp/1/p2p/12D3KooW"]}})

    assert config.network.listen == ("/ip4/127.0.0.1/tcp/0",)
    assert config.network.dial_timeout_s == 2.5
    assert config.network.bootstrap == ("/ip4/127.0.0.1/tcp/1/p2p/12D3KooW",)


@pytest.mark.parametrize("text", ["party,dealer", " party, dealer", '["party", "dealer"]'])
def test_lists_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("FINODE_NODE__ROLES", text)

    assert load(tmp_path).node.roles == (Role.PARTY, Role.DEALER)


def test_a_list_that_is_neither(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINODE_NODE__ROLES", '["party"')

    with pytest.raises(ConfigError, match=r"node\.roles.*neither"):
        load(tmp_path)


def test_the_file_is_found_in_a_home_given_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "home").mkdir()
    write(tmp_path / "home", "[node]\ncapacity = 7\n")

    assert load(Path("~/home")).node.capacity == 7


BAD: list[tuple[str, str]] = [
    ("[node]\ncapacity = 0\n", "node.capacity"),
    ('[node]\ncapacity = "many"\n', "node.capacity"),
    ('[node]\nroles = ["emperor"]\n', "node.roles"),
    ("[node]\ncapacitty = 1\n", "node.capacitty"),
    ("[nodes]\ncapacity = 1\n", "nodes"),
    ("node = 1\n", "node"),
    ('[federation]\ntrust = "blind"\n', "federation.trust"),
    ('[federation]\nname = ""\n', "federation.name"),
    ("[querier]\nparties = 1\n", "querier.parties"),
    ("[querier]\nfractional_bits = 21\n", "querier.fractional_bits"),
    ('[owner]\nreveal_at_most = "all"\n', "owner.reveal_at_most"),
    ("[network]\nheartbeat_timeout_s = 0\n", "network.heartbeat_timeout_s"),
    ('[network]\nbootstrap = ["/ip4/127.0.0.1/tcp/1"]\n', "must end in /p2p/PEER_ID"),
    ('[api]\nbind = "7878"\n', "is not HOST:PORT"),
    ('[api]\nbind = "127.0.0.1:99999"\n', "is not HOST:PORT"),
    ('[api]\nbind = "0.0.0.0:7878"\n', "set a token"),
    ('[log]\nlevel = "shout"\n', "log.level"),
]


@pytest.mark.parametrize(("text", "named"), BAD)
def test_a_wrong_setting_names_its_field_and_the_file(tmp_path: Path, text: str, named: str) -> None:
    write(tmp_path, text)

    with pytest.raises(ConfigError) as refused:
        load(tmp_path)

    assert named in refused.value.message
    assert str(tmp_path / CONFIG_NAME) in refused.value.message
    assert "Traceback" not in refused.value.message


def test_a_wrong_environment_variable_names_its_field(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINODE_NODE__CAPACITY", "none")

    with pytest.raises(ConfigError, match=r"node\.capacity"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("FINODE_NODE", "{not json"), ("FINODE_NODE", "5"), ("FINODE_NODE__COLOR", "red")]
)
def test_an_environment_variable_that_fits_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigError, match="node"):
        load(tmp_path)


def test_all_wrong_settings_are_told_at_once(tmp_path: Path) -> None:
    write(tmp_path, "[node]\ncapacity = 0\nworkers = 0\n")

    with pytest.raises(ConfigError) as refused:
        load(tmp_path)

    assert "node.capacity" in refused.value.message
    assert "node.workers" in refused.value.message


@pytest.mark.parametrize("content", [b"[node\n", b"\xff\xfe"])
def test_a_file_that_is_not_toml_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / CONFIG_NAME).write_bytes(content)

    with pytest.raises(ConfigError, match=f"{CONFIG_NAME} is not valid TOML"):
        load(tmp_path)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / CONFIG_NAME).mkdir()

    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path)


def test_the_token_is_not_shown(tmp_path: Path) -> None:
    write(tmp_path, '[api]\nbind = "0.0.0.0:7878"\ntoken = "tell-nobody"\n')

    config = load(tmp_path)

    assert config.api.token == "tell-nobody"  # noqa: S105 # the one in the file above
    assert "tell-nobody" not in f"{config!r} {config} {config.api!r} {config.api}"


@pytest.mark.parametrize("section", ['bind = "7878"', "max_body_mb = 0", "typo = 1"])
def test_the_token_is_in_no_error(tmp_path: Path, section: str) -> None:
    write(tmp_path, f'[api]\ntoken = "tell-nobody"\n{section}\n')

    with pytest.raises(ConfigError) as refused:
        load(tmp_path)

    assert "tell-nobody" not in str(refused.value)


def test_settings_cannot_be_changed(tmp_path: Path) -> None:
    config = load(tmp_path)

    for model, name in ((config.node, "capacity"), (config, "home")):
        with pytest.raises(ValueError, match="frozen"):
            setattr(model, name, getattr(model, name))


def test_every_setting_says_what_it_is() -> None:
    for name, section in Config.model_fields.items():
        if name == "home":
            continue
        assert isinstance(section.annotation, type)
        assert issubclass(section.annotation, Section)
        for setting, field in section.annotation.model_fields.items():
            assert field.description, f"{name}.{setting}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("127.0.0.1:80", ("127.0.0.1", 80)), ("[::1]:0", ("::1", 0)), ("localhost:65535", ("localhost", 65535))],
)
def test_host_and_port(text: str, expected: tuple[str, int]) -> None:
    assert split_host_port(text) == expected


@pytest.mark.parametrize("text", ["", "80", ":80", "host:", "host:port", "host:65536", "host:-1", "host:８０"])
def test_no_host_and_port(text: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        split_host_port(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),  # noqa: S104 # nothing is bound
        ("::", False),
        ("192.168.0.1", False),
        ("example.org", False),
        ("", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    assert is_loopback(host) is loopback
