"""Addresses and when to dial: no network here."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multiaddr import Multiaddr

from finode.errors import ConfigError
from finode.identity import Identity
from finode.net.addresses import AddressBook, announced, check, host_port, parse, split_peer
from finode.net.dialer import FIRST_PAUSE_S, LAST_PAUSE_S, YIELD_S, Backoff

SMALL, LARGE = sorted(Identity.generate().peer_id for _ in range(2))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_pauses_double_up_to_the_longest_and_begin_anew_when_reached() -> None:
    clock = Clock()
    backoff = Backoff(SMALL, clock)
    assert backoff.is_due(LARGE)
    pauses = [backoff.failed(LARGE) for _ in range(12)]
    assert pauses[0] == pytest.approx(FIRST_PAUSE_S, rel=0.2)
    assert pauses[3] == pytest.approx(FIRST_PAUSE_S * 8, rel=0.2)
    assert pauses[-1] == pytest.approx(LAST_PAUSE_S, rel=0.2)
    assert not backoff.is_due(LARGE)
    clock.now += LAST_PAUSE_S * 1.2
    assert backoff.is_due(LARGE)
    backoff.reached(LARGE)
    assert backoff.failed(LARGE) == pytest.approx(FIRST_PAUSE_S, rel=0.2)
    backoff.hurry(LARGE)
    assert backoff.is_due(LARGE)


def test_of_two_that_learn_of_each_other_one_waits() -> None:
    clock = Clock()
    assert Backoff(SMALL, clock).is_due(LARGE)
    larger = Backoff(LARGE, clock)
    assert not larger.is_due(SMALL)
    clock.now += YIELD_S
    assert larger.is_due(SMALL)


def test_the_address_that_worked_comes_first() -> None:
    book = AddressBook()
    book.configure(LARGE, "/ip4/192.0.2.1/tcp/1")
    assert book.of(LARGE) == ("/ip4/192.0.2.1/tcp/1",)
    assert book.announce(LARGE, ("/ip4/192.0.2.2/tcp/2", "nonsense", "/ip4/192.0.2.3/udp/3/quic-v1"))
    assert not book.announce(LARGE, ("/ip4/192.0.2.2/tcp/2",))
    assert book.of(LARGE) == ("/ip4/192.0.2.2/tcp/2", "/ip4/192.0.2.1/tcp/1")
    book.worked(LARGE, "/ip4/192.0.2.1/tcp/1")
    assert book.of(LARGE) == ("/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/2")
    book.forget(LARGE)
    assert book.of(LARGE) == ("/ip4/192.0.2.1/tcp/1",)
    assert book.of(SMALL) == ()


@pytest.mark.parametrize(
    "address",
    [
        "",
        "nonsense",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/1",
        "/ip4/127.0.0.1/tcp/1/ws",
        "/ip4/999.0.0.1/tcp/1",
        "/tcp/1",
    ],
)
def test_what_cannot_be_dialed_is_no_address(address: str) -> None:
    assert parse(address) is None
    with pytest.raises(ConfigError, match=r"network\.listen"):
        check(address, "listen")


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from(["ip4", "dns", "tcp", "p2p", "1.2.3.4", "70000", "", "-1"])).map("/".join)
)
def test_whatever_a_peer_says_of_its_addresses_raises_nothing(text: str) -> None:
    for address in (text, f"/{text}", f"/dns/{text}/tcp/1"):
        AddressBook().announce(SMALL, (address,))


def test_a_peer_is_split_off() -> None:
    assert split_peer(f"/ip4/192.0.2.1/tcp/1/p2p/{SMALL}") == ("/ip4/192.0.2.1/tcp/1", SMALL)
    assert split_peer("/ip4/192.0.2.1/tcp/1") == ("/ip4/192.0.2.1/tcp/1", None)


def test_wildcards_are_announced_as_interfaces() -> None:
    found = announced([Multiaddr("/ip4/0.0.0.0/tcp/4001"), Multiaddr("/ip4/127.0.0.1/tcp/4002")])
    assert "/ip4/127.0.0.1/tcp/4002" in found
    hosts = [host_port(Multiaddr(address))[0] for address in found]
    assert "0.0.0.0" not in hosts  # noqa: S104
    assert len(found) >= 2
    assert all(host_port(Multiaddr(address))[1] in (4001, 4002) for address in found)
