"""Receipts, rewards and feedback as an ASGI application serves them."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import structlog

from finode.api import build_app
from tests.fakes.node import ABORTED, EPOCH, RECEIPT, SESSION, FakeNode


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


def client(node: FakeNode, token: str = "") -> httpx.AsyncClient:
    app = build_app(node, token=token, max_body_bytes=20_000, log=structlog.get_logger())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:7878/finode/v1")


@pytest.mark.trio
async def test_receipts_are_listed_by_epoch_and_limit(node: FakeNode) -> None:
    async with client(node) as http:
        every = (await http.get("/receipts")).json()["receipts"]
        assert [view["id"] for view in every] == [RECEIPT, ABORTED]
        assert every[0]["work"][2]["role"] == "dealer"
        of_epoch = (await http.get(f"/receipts?epoch={EPOCH - 1}&limit=7")).json()["receipts"]
        assert [view["id"] for view in of_epoch] == [ABORTED]

    assert node.asked_of_ledger == [("receipts", None, 100), ("receipts", EPOCH - 1, 7)]


@pytest.mark.trio
async def test_one_receipt_by_its_first_digits(node: FakeNode) -> None:
    async with client(node) as http:
        found = await http.get(f"/receipts/{RECEIPT[:8]}")
        assert (found.status_code, found.json()["session"]) == (200, SESSION)
        missing = await http.get("/receipts/00ff")
        assert (missing.status_code, missing.json()["code"]) == (404, "unknown-record")
        assert "finode receipts list" in missing.json()["hint"]


@pytest.mark.trio
async def test_an_export_is_bytes(node: FakeNode) -> None:
    async with client(node) as http:
        response = await http.get("/receipts/export?epoch=3")

    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["cache-control"] == "no-store"
    assert response.content.startswith(b"finode ledger 1\n")
    assert node.asked_of_ledger == [("export", 3)]


@pytest.mark.trio
async def test_rewards_and_why(node: FakeNode) -> None:
    async with client(node) as http:
        rewards = (await http.get("/rewards")).json()
        assert rewards["paid_in"] == rewards["paid_out"] + rewards["pending"]
        assert rewards["epoch"] is None
        assert (await http.get(f"/rewards?epoch={EPOCH}")).json()["epoch"] == EPOCH
        why = (await http.get("/rewards/Clinic%20East?epoch=2")).json()
        assert sum(one["amount"] for one in why["amounts"]) == why["balance"]
        assert (await http.get("/rewards/A%2FB")).status_code == 404

    assert node.asked_of_ledger[-2:] == [("explain", "Clinic East", 2), ("explain", "A/B", None)]


@pytest.mark.trio
@pytest.mark.parametrize(
    "path",
    ["/receipts?epoch=-1", "/receipts?limit=0", "/receipts?limit=1001", "/rewards?epoch=x", "/receipts/export?epoch="],
)
async def test_what_is_wrong_with_a_request_is_said(node: FakeNode, path: str) -> None:
    async with client(node) as http:
        response = await http.get(path)

    assert response.status_code == 400
    body = response.json()
    assert "the request is wrong" in body["error"]
    assert ".py" not in body["error"]
    assert body["code"] == "input-error"
    assert node.asked_of_ledger == []


@pytest.mark.trio
async def test_feedback(node: FakeNode) -> None:
    async with client(node) as http:
        taken = await http.post("/feedback", json={"session": SESSION, "labels": [0, -1, 2]})
        assert taken.json() == {"session": SESSION, "count": 3, "labelled": 2}
        gone = await http.post("/feedback", json={"session": "00" * 16, "labels": [0]})
        assert (gone.status_code, gone.json()["reason"]) == (502, "not-kept")

    assert node.labels == [(0, -1, 2)]


@pytest.mark.trio
@pytest.mark.parametrize(
    "body",
    [
        {"session": SESSION, "labels": []},
        {"session": SESSION, "labels": [-2]},
        {"session": SESSION, "labels": [1.5]},
        {"session": SESSION, "labels": ["one"]},
        {"session": SESSION, "labels": [0] * 4097},
        {"session": SESSION},
        {"session": SESSION, "labels": [0], "more": 1},
        {"session": "x" * 65, "labels": [0]},
        [],
    ],
)
async def test_labels_are_checked(node: FakeNode, body: Any) -> None:
    async with client(node) as http:
        response = await http.post("/feedback", json=body)

    assert response.status_code == 400
    assert node.labels == []


@pytest.mark.trio
@pytest.mark.parametrize("path", ["/receipts", f"/receipts/{RECEIPT}", "/receipts/export", "/rewards", "/rewards/x"])
async def test_the_ledger_is_guarded_as_the_rest(node: FakeNode, path: str) -> None:
    async with client(node, token="s3cret") as http:  # noqa: S106
        assert (await http.get(path)).status_code == 401
        assert (await http.get(path, headers={"origin": "http://evil.example"})).status_code == 403

    assert node.asked_of_ledger == []
