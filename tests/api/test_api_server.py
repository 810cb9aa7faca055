"""The API served by hypercorn on real sockets: ports, disconnects, quick shutdown, bytes that are no HTTP."""

from __future__ import annotations

import json
import logging

import httpx
import pytest
import trio

from finode.errors import ConfigError
from finode.node.interface import ProgressCallback, QueryProgress, QueryRequest
from tests.fakes.api import MAX_BODY_BYTES, serving
from tests.fakes.node import FakeNode

pytestmark = pytest.mark.trio

QUERY = {"service": "vectors", "shape": [3], "dtype": "|u1", "data": "AQAA"}
INFER = {"inputs": [{"name": "input", "shape": [3], "datatype": "FP64", "data": [1, 0, 0]}]}


async def forever(_: QueryRequest, __: ProgressCallback) -> None:
    await trio.sleep_forever()


async def test_port_0_tells_the_real_port_and_answers_there() -> None:
    async with serving(FakeNode()) as bound, httpx.AsyncClient(base_url=f"http://{bound}") as http:
        assert not bound.endswith(":0")
        response = await http.post("/finode/v1/queries", json=QUERY)
        assert json.loads(response.text.splitlines()[-1])["labels"] == ["one"]
        assert (await http.post("/v2/models/vectors/infer", json=INFER)).status_code == 200


async def test_an_address_in_use_is_told_as_such() -> None:
    async with serving(FakeNode()) as bound:
        with pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="in use"), flatten_subgroups=True):
            async with serving(FakeNode(), bind=bound):
                raise AssertionError("both listen on one port")


async def test_a_client_that_leaves_a_stream_cancels_its_query() -> None:
    node = FakeNode()
    node.before_answer = forever
    lines: list[str] = []
    read_one = trio.Event()

    async def read(http: httpx.AsyncClient) -> None:
        async with http.stream("POST", "/finode/v1/queries", json=QUERY) as response:
            async for line in response.aiter_lines():
                lines.append(line)
                read_one.set()

    async with serving(node) as bound, httpx.AsyncClient(base_url=f"http://{bound}") as http:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read, http)
            with trio.fail_after(5):
                await read_one.wait()
                await node.started.wait()
            nursery.cancel_scope.cancel()
        assert json.loads(lines[0])["phase"] == "committee"
        with trio.fail_after(5):
            await node.query_cancelled.wait()
        assert (await http.get("/v2/health/live")).status_code == 200


async def test_a_client_that_leaves_an_inference_cancels_its_query() -> None:
    node = FakeNode()
    node.before_answer = forever
    async with serving(node) as bound, httpx.AsyncClient(base_url=f"http://{bound}") as http:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: http.post("/v2/models/vectors/infer", json=INFER))
            with trio.fail_after(5):
                await node.started.wait()
            nursery.cancel_scope.cancel()
        with trio.fail_after(5):
            await node.query_cancelled.wait()


async def test_shutdown_is_quick_with_a_query_in_flight_and_with_a_client_that_reads_nothing() -> None:
    node = FakeNode()
    node.before_answer = forever
    host, port = "127.0.0.1", 0
    with trio.fail_after(20):
        async with serving(node) as bound:
            host, _, digits = bound.rpartition(":")
            port = int(digits)
            deaf = await trio.open_tcp_stream(host, port)
            body = json.dumps(QUERY).encode()
            head = f"POST /finode/v1/queries HTTP/1.1\r\nHost: {bound}\r\nContent-Length: {len(body)}\r\n\r\n"
            await deaf.send_all(head.encode() + body)
            await node.started.wait()
            before = trio.current_time()
        assert trio.current_time() - before < 3
        assert node.query_cancelled.is_set()
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream(host, port)
        await deaf.aclose()


@pytest.mark.slow
async def test_a_stalled_write_does_not_hold_up_shutdown() -> None:
    """A client that asks for megabytes and reads none: hypercorn's write is shielded, so the socket must go."""

    async def flood(_: QueryRequest, progress: ProgressCallback) -> None:
        while True:
            await progress(QueryProgress(session="", phase="rounds", done=0, total=0, detail="x" * 1_000_000))
            await trio.lowlevel.checkpoint()

    node = FakeNode()
    node.before_answer = flood
    with trio.fail_after(30):
        async with serving(node) as bound:
            host, _, port = bound.rpartition(":")
            deaf = await trio.open_tcp_stream(host, int(port))
            body = json.dumps(QUERY).encode()
            head = f"POST /finode/v1/queries HTTP/1.1\r\nHost: {bound}\r\nContent-Length: {len(body)}\r\n\r\n"
            await deaf.send_all(head.encode() + body)
            await node.started.wait()
            # The flood fills the socket's buffers (a few megabytes) in this time; a full buffer raises no event.
            await trio.sleep(0.5)
            before = trio.current_time()
        seconds = trio.current_time() - before
        assert seconds < 3
        await deaf.aclose()


async def test_bytes_that_are_no_http_end_their_connection_only(caplog: pytest.LogCaptureFixture) -> None:
    node = FakeNode()
    with caplog.at_level(logging.ERROR):
        async with serving(node) as bound, httpx.AsyncClient(base_url=f"http://{bound}") as http:
            host, _, port = bound.rpartition(":")
            for garbage in (b"\x00" * 200, b"\xff" * 5000, b"GET / HTTP/9.9\r\n\r\n", b"GET\r\n\r\n", b"A" * 70_000):
                stream = await trio.open_tcp_stream(host, int(port))
                try:
                    await stream.send_all(garbage)
                    await stream.send_eof()
                    with trio.move_on_after(5):
                        while await stream.receive_some(4096):
                            pass
                except trio.BrokenResourceError:
                    pass  # refused with a reset
                await stream.aclose()
            assert (await http.get("/v2/health/live")).status_code == 200


async def test_a_websocket_is_refused() -> None:
    async with serving(FakeNode()) as bound, httpx.AsyncClient(base_url=f"http://{bound}") as http:
        headers = {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-version": "13",
            "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        }
        response = await http.get("/finode/v1/status", headers=headers)
        assert response.status_code == 403


async def test_a_chunked_body_over_the_limit_is_refused_while_it_comes() -> None:
    async with serving(FakeNode()) as bound:
        host, _, port = bound.rpartition(":")
        stream = await trio.open_tcp_stream(host, int(port))
        head = f"POST /finode/v1/queries HTTP/1.1\r\nHost: {bound}\r\nTransfer-Encoding: chunked\r\n\r\n"
        await stream.send_all(head.encode())
        piece = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        for _ in range(MAX_BODY_BYTES // 0x10000 + 1):
            await stream.send_all(piece)
        with trio.fail_after(10):
            answer = await stream.receive_some(4096)
        assert answer.startswith(b"HTTP/1.1 413")
        await stream.aclose()
