"""What a peer is dialed through takes the place of all its own addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from finode.config import load
from finode.errors import ConfigError
from finode.identity import Identity
from finode.net.addresses import AddressBook

PEER, OTHER = (Identity.generate().peer_id for _ in range(2))


def test_a_peer_is_dialed_through_what_the_person_says_and_nowhere_else() -> None:
    book = AddressBook()
    book.configure(PEER, "/ip4/192.0.2.1/tcp/1")
    book.announce(PEER, ("/ip4/192.0.2.2/tcp/2",))
    book.announce(OTHER, ("/ip4/192.0.2.3/tcp/3",))
    book.worked(PEER, "/ip4/192.0.2.1/tcp/1")

    book.dial_through(PEER, "/ip4/127.0.0.1/tcp/7")
    book.dial_through(PEER, "/ip4/127.0.0.1/tcp/8")

    assert book.of(PEER) == ("/ip4/127.0.0.1/tcp/7", "/ip4/127.0.0.1/tcp/8")
    assert book.of(OTHER) == ("/ip4/192.0.2.3/tcp/3",)


def test_what_is_dialed_through_names_its_peer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"dial_through: '/ip4/127\.0\.0\.1/tcp/7' lacks the peer's id"):
        load(tmp_path, {"network": {"dial_through": ["/ip4/127.0.0.1/tcp/7"]}})

    config = load(tmp_path, {"network": {"dial_through": [f"/ip4/127.0.0.1/tcp/7/p2p/{PEER}"]}})
    assert config.network.dial_through == (f"/ip4/127.0.0.1/tcp/7/p2p/{PEER}",)
