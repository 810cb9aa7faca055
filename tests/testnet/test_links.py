"""Links by name and from a TOML matrix; what is wrong with one is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from finode.errors import ConfigError
from finode.testnet.links import KINDS, Link, load_links, parse_links

NODES = ("bank", "clinic", "hospital")


@pytest.mark.parametrize(
    ("kind", "rtt_ms", "mbit"),
    [("lan", 0.3, 10_000), ("regional", 10, 1_000), ("continental", 40, 200), ("intercontinental", 150, 100)],
)
def test_a_kind_holds_for_all_pairs(kind: str, rtt_ms: float, mbit: float) -> None:
    links = load_links(kind, NODES)

    assert links.name == kind
    assert links.between("bank", "clinic") == links.between("hospital", "bank") == Link(rtt_ms, mbit)


def test_a_link_in_seconds_and_bytes() -> None:
    assert Link(40, 200).delay_s == pytest.approx(0.02)
    assert Link(40, 200).bytes_per_s == pytest.approx(25e6)


def test_a_matrix_gives_pairs_their_own_links_and_the_later_entry_counts(tmp_path: Path) -> None:
    path = tmp_path / "links.toml"
    path.write_text(
        """
        default = { rtt_ms = 5, mbit = 500 }
        [[link]]
        between = ["bank", "clinic", "hospital"]
        kind = "regional"
        [[link]]
        between = ["clinic", "bank"]
        rtt_ms = 70
        mbit = 100
        """
    )

    links = load_links(str(path), (*NODES, "savings"))

    assert links.between("bank", "clinic") == links.between("clinic", "bank") == Link(70, 100)
    assert links.between("hospital", "clinic") == KINDS["regional"]
    assert links.between("hospital", "savings") == Link(5, 500)


def test_an_empty_matrix_is_a_lan() -> None:
    assert parse_links("", Path("links.toml"), NODES).between("bank", "clinic") == KINDS["lan"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("default = 7", "default"),
        ('default = "far"', "default: 'far' is none of lan, regional, continental, intercontinental"),
        ("default = { rtt_ms = 5 }", "give a kind, or both rtt_ms and mbit"),
        ("speed = 3", "speed: Extra inputs"),
        ("[[link]]\nkind = 'lan'", r"\[\[link\]\] number 1, between: Field required"),
        ("[[link]]\nbetween = ['bank']\nkind = 'lan'", "number 1, between: Tuple should have at least 2"),
        ("[[link]]\nbetween = ['bank', 'bank']\nkind = 'lan'", "between names a node twice"),
        ("[[link]]\nbetween = ['bank', 'clinic']\nkind = 'near'", "'near' is none of lan"),
        ("[[link]]\nbetween = ['bank', 'clinic']\nkind = 'lan'\nmbit = 3", "not both"),
        ("[[link]]\nbetween = ['bank', 'clinic']\nrtt_ms = 3", "give a kind, or both"),
        ("[[link]]\nbetween = ['bank', 'clinic']\nrtt_ms = 3\nmbit = 0", "mbit over 0"),
        ("[[link]]\nbetween = ['bank', 'clinic']\nrtt_ms = -3\nmbit = 1", "rtt_ms is at least 0"),
        ("[[link]]\nbetween = ['bank', 'clinic']\nrtt_ms = nan\nmbit = 1", "rtt_ms"),
        ("[[link]]\nbetween = ['bank', 'clinic']\nrtt_ms = 60000\nmbit = 1", "rtt_ms: Input should be less than"),
        ("[[link]]\nbetween = ['bank', 'nobody']\nkind = 'lan'", "between: there is no node 'nobody'"),
        ("[[link", "not valid TOML"),
    ],
    ids=range(16),
)
def test_what_is_wrong_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as caught:
        parse_links(text, Path("links.toml"), NODES)

    assert "links.toml" in caught.value.message


def test_a_name_that_is_neither_kind_nor_file_gets_the_kinds(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="neither lan, regional, continental, intercontinental nor a file"):
        load_links(str(tmp_path / "none.toml"), NODES)
