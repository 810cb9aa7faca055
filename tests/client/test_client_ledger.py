"""What `finode.Client` says of receipts and rewards, the same on asyncio and on trio."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from io import BytesIO

import anyio
import httpx
import numpy as np
import pytest

from finode import Client, errors
from finode.client import ReceiptView, RewardsView
from finode.ledger.export import read_entries
from tests.fakes.api import serving_in_thread
from tests.fakes.node import ABORTED, EPOCH, EXPLANATION, RECEIPT, SESSION, FakeNode, receipt_view, rewards_view

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def on(backend: str, test: Callable[[], Awaitable[None]]) -> None:
    anyio.run(test, backend=backend)


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def url(node: FakeNode) -> Iterator[str]:
    with serving_in_thread(node) as bound:
        yield f"http://{bound}"


@both
def test_receipts_and_rewards_are_typed(url: str, node: FakeNode, backend: str) -> None:
    async def run() -> None:
        async with Client(url) as client:
            found = await client.receipts()
            assert all(isinstance(view, ReceiptView) for view in found)
            assert found[0] == receipt_view()
            assert [view.id for view in await client.receipts(EPOCH - 1, limit=5)] == [ABORTED]
            assert (await client.receipt(RECEIPT[:6])).session == SESSION
            rewards = await client.rewards(EPOCH)
            assert isinstance(rewards, RewardsView)
            assert rewards == rewards_view(EPOCH)
            assert (await client.rewards()).epoch is None
            assert await client.explain("Clinic East") == EXPLANATION
            exported = await client.export_receipts(epoch=4)
            assert len(list(read_entries(BytesIO(exported)))) == 3
        assert ("receipts", EPOCH - 1, 5) in node.asked_of_ledger
        assert ("export", 4) in node.asked_of_ledger

    on(backend, run)


@both
def test_feedback_takes_lists_and_arrays(url: str, node: FakeNode, backend: str) -> None:
    async def run() -> None:
        async with Client(url) as client:
            assert (await client.feedback(SESSION, [1, -1])).labelled == 1
            await client.feedback(SESSION, np.array([2, 0]))
            with pytest.raises(errors.PeerRefused, match="not kept") as caught:
                await client.feedback("00" * 16, [1])
            assert caught.value.reason == "not-kept"
            with pytest.raises(errors.InputError, match="labels"):
                await client.feedback(SESSION, [-7])
        assert node.labels == [(1, -1), (2, 0)]

    on(backend, run)


@both
def test_what_is_not_in_the_ledger_is_told_as_such(url: str, backend: str) -> None:
    async def run() -> None:
        async with Client(url) as client:
            with pytest.raises(errors.UnknownRecord, match="no receipt"):
                await client.receipt("00FF")
            for no_id in ("export", "a/b?c", "", "0" * 65):
                with pytest.raises(errors.InputError, match="is no id"):
                    await client.receipt(no_id)
            with pytest.raises(errors.UnknownRecord, match="'Clinic/Ö & Co'"):
                await client.explain("Clinic/Ö & Co")

    on(backend, run)


@pytest.mark.trio
async def test_an_export_that_is_refused_is_an_error() -> None:
    client = Client("http://127.0.0.1:1")
    answer = httpx.Response(507, json={"code": "storage-full", "message": "the disk is full", "hint": ""})
    client._http = httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer), base_url="http://127.0.0.1:1")
    async with client:
        with pytest.raises(errors.StorageFull, match="the disk is full"):
            await client.export_receipts()
