"""A session of real daemons: its members hold one body, signed, in their homes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import trio

from finode.client import Client
from finode.daemon.home import read_api_address
from finode.testnet.network import Network

pytestmark = pytest.mark.slow


def _signed(home: Path, session: str) -> bytes | None:
    """Return the body of a session that a node has signed, as its file says."""
    with closing(sqlite3.connect(f"file:{home / 'cosigning.db'}?mode=ro", uri=True)) as connection:
        row = connection.execute("SELECT body FROM signed WHERE session = ?", (bytes.fromhex(session),)).fetchone()
    return None if row is None else bytes(row[0])


@pytest.mark.trio
async def test_the_members_of_a_session_sign_one_receipt(network: Network) -> None:
    asker = next(node for node in network.nodes if node.name == "querier")
    address = read_api_address(asker.home)
    assert address is not None
    async with Client(address.url) as client:
        answer = await client.query("small", np.random.default_rng(5).uniform(size=(3, 1, 8, 8)), deadline_s=90)

    members = {*answer.committee.parties, answer.committee.dealer, asker.peer}
    bodies: dict[str, bytes] = {}
    with trio.fail_after(20):
        while bodies.keys() < members:
            found = {node.peer: _signed(node.home, answer.session) for node in network.nodes}
            bodies = {peer: body for peer, body in found.items() if body is not None}
            await trio.sleep(0.1)
    assert bodies.keys() == members
    assert len(set(bodies.values())) == 1
