"""Real nodes for the tests of the network: homes with rosters, and nodes on loopback."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.typing import FilteringBoundLogger

from finode.config import Config, load
from finode.identity import Identity, PeerId
from finode.net.directory import Offer
from finode.net.host import Libp2pNetwork, open_network
from finode.net.roster import write_roster
from tests.net.nodes import MakeHome, OpenNode


@pytest.fixture
def events() -> list[str]:
    """The names of all events that the nodes of the test have logged."""
    return []


@pytest.fixture
def log(events: list[str]) -> FilteringBoundLogger:
    def note(logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        events.append(event["event"])
        return event

    logger: FilteringBoundLogger = structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[
            note,
            structlog.processors.format_exc_info,
            structlog.processors.KeyValueRenderer(key_order=["event"]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
    )
    return logger


@pytest.fixture
def make_home(tmp_path: Path) -> MakeHome:
    """Make a home with a roster; keyword arguments are settings of [network], `federation` of [federation]."""

    def make(
        identity: Identity, roster: dict[PeerId, str], *, federation: dict[str, Any] | None = None, **network: Any
    ) -> Config:
        home = tmp_path / identity.peer_id[-8:]
        home.mkdir(exist_ok=True)
        write_roster(home / "roster.toml", roster)
        flags = {"network": {"listen": ["/ip4/127.0.0.1/tcp/0"], **network}, "federation": federation or {}}
        return load(home, flags)

    return make


@pytest.fixture
def open_node(make_home: MakeHome, log: FilteringBoundLogger) -> OpenNode:
    """Open a real node on loopback."""

    def open_it(
        identity: Identity,
        roster: dict[PeerId, str],
        *,
        offer: Callable[[], Offer] = Offer,
        versions: tuple[int, ...] = (1,),
        **settings: Any,
    ) -> AbstractAsyncContextManager[Libp2pNetwork]:
        config = make_home(identity, roster, **settings)
        return open_network(config, identity, offer, log=log.bind(node=identity.peer_id[-6:]), versions=versions)

    return open_it
