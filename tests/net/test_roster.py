"""The roster file: read, added to, reloaded, and clear about what is wrong in it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from finode.errors import ConfigError
from finode.identity import Identity
from finode.net.roster import Roster, add_peer, load_roster, remove_peer, start_roster, write_roster

ONE, TWO = (Identity.from_seed(bytes([number]) * 32).peer_id for number in (1, 2))  # test ids must not change


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "roster.toml"


def test_a_roster_is_started_and_added_to(path: Path) -> None:
    start_roster(path, ONE, "Clinic North")
    assert add_peer(path, TWO, 'Lab "Süd" \\ 2')
    assert load_roster(path) == {ONE: "Clinic North", TWO: 'Lab "Süd" \\ 2'}
    assert not add_peer(path, TWO, 'Lab "Süd" \\ 2')
    assert add_peer(path, TWO, "Lab South")
    assert load_roster(path)[TWO] == "Lab South"
    assert remove_peer(path, TWO)
    assert not remove_peer(path, TWO)
    assert load_roster(path) == {ONE: "Clinic North"}
    assert [file.name for file in path.parent.iterdir()] == ["roster.toml"]


def test_a_roster_is_started_once(path: Path) -> None:
    start_roster(path, ONE, "Clinic North")
    with pytest.raises(ConfigError, match=r"roster\.toml exists already"):
        start_roster(path, TWO, "Other")


def test_adding_starts_a_roster(path: Path) -> None:
    assert add_peer(path, ONE, "Clinic North")
    assert load_roster(path) == {ONE: "Clinic North"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[peer]", "is not valid TOML"),
        ("peers = []", "has peers; it may have"),
        ('peer = "x"', "no list of"),
        ("peer = [1]", "number 1 may have id and organization only"),
        (f'[[peer]]\nid = "{ONE}"', r"number 1 \(12D3.*\) lacks its organization"),
        ('[[peer]]\norganization = "A"', "number 1 lacks its id"),
        ('[[peer]]\nid = "nonsense"\norganization = "A"', "number 1: 'nonsense' is not an Ed25519 peer id"),
        (f'[[peer]]\nid = "{ONE}"\norganization = "A"\nrole = "x"', "number 1 may have id and organization only"),
        (f'[[peer]]\nid = "{ONE}"\norganization = "{"A" * 65}"', "at most 64"),
        (f'[[peer]]\nid = "{ONE}"\norganization = "a\\u0000b"', "printable"),
        (f'[[peer]]\nid = "{ONE}"\norganization = "A"\n' * 2, "number 2: .* stands in the roster already"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_entry(path: Path, text: str, message: str) -> None:
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_roster(path)
    assert str(path) in caught.value.message


def test_a_missing_roster_says_what_to_do(path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no roster") as caught:
        load_roster(path)
    assert "finode init" in caught.value.hint


def test_bytes_that_are_no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load_roster(path)


def test_a_new_entry_is_checked(path: Path) -> None:
    with pytest.raises(ConfigError, match="not an Ed25519 peer id"):
        add_peer(path, "QmNonsense", "A")
    with pytest.raises(ConfigError, match="lacks its organization"):
        add_peer(path, ONE, "  ")
    assert not path.exists()


def test_reload_says_who_was_dropped(path: Path) -> None:
    write_roster(path, {ONE: "A", TWO: "B"})
    roster = Roster(path)
    assert roster.accepts(TWO)
    assert roster.organization_of(TWO) == "B"
    write_roster(path, {ONE: "A2"})
    assert roster.reload() == {TWO}
    assert not roster.accepts(TWO)
    assert dict(roster.peers) == {ONE: "A2"}


def test_a_reload_that_fails_changes_nothing(path: Path) -> None:
    write_roster(path, {ONE: "A", TWO: "B"})
    roster = Roster(path)
    path.write_text("nonsense")
    with pytest.raises(ConfigError):
        roster.reload()
    assert roster.accepts(TWO)


def test_an_open_roster_accepts_anybody() -> None:
    roster = Roster(None)
    assert roster.is_open
    assert roster.accepts(ONE)
    assert roster.organization_of(ONE) == ""
    assert roster.reload() == frozenset()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot write"):
        write_roster(tmp_path / "missing" / "roster.toml", {ONE: "A"})


def test_a_roster_is_private(path: Path) -> None:
    write_roster(path, {ONE: "A"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
