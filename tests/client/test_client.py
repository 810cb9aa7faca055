"""`finode.Client` against a real server, the same tests on asyncio and on trio."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import numpy as np
import pytest
import trio

from finode import Answer, Client, Progress, errors
from finode.client import address
from finode.node.interface import ProgressCallback, QueryRequest
from tests.fakes.api import serving_in_thread
from tests.fakes.node import CLASSES, COMMITTEE, DEALER, PARTIES, PEER, SESSION, FakeNode


def on(backend: str, test: Callable[[], Awaitable[None]]) -> None:
    """Run a body that is written once on the backend named."""
    anyio.run(test, backend=backend)


both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.startswith("FINODE_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FINODE_HOME", str(tmp_path / "no-home"))


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def url(node: FakeNode) -> Iterator[str]:
    with serving_in_thread(node) as bound:
        yield f"http://{bound}"


async def check_a_query(url: str, node: FakeNode) -> None:
    seen: list[Progress] = []
    x = np.zeros((2, 1, 2, 2))
    x[0, 0, 0, 0] = 1
    async with Client(url) as client:
        answer = await client.query(
            "digits", x, parties=3, vote="hard", deadline_s=9.5, engine="crypten", on_progress=seen.append
        )

    assert isinstance(answer, Answer)
    assert answer.labels == ("one", "zero")
    assert answer.label_indices.tolist() == [1, 0]
    assert answer.probabilities is not None
    assert answer.probabilities.tolist() == [[0.1, 0.8, 0.1], [0.8, 0.1, 0.1]]
    assert answer.top is not None
    assert answer.top.tolist() == [0.8, 0.8]
    assert answer.classes == CLASSES
    assert (answer.committee.id, answer.committee.parties, answer.committee.dealer) == (COMMITTEE, PARTIES, DEALER)
    assert (answer.timings.total_s, answer.traffic.rounds, answer.engine) == (1.0, 17, "native")
    assert [progress.phase for progress in seen] == ["committee", "deployment", "preprocessing", "rounds"]
    assert seen[0] == Progress(session=SESSION, phase="committee", done=1, total=2, detail="the committee")
    (request,) = node.requests
    assert (request.parties, request.vote, request.deadline_s, request.engine) == (3, "hard", 9.5, "crypten")


@pytest.mark.asyncio
async def test_a_query_on_asyncio(url: str, node: FakeNode) -> None:
    await check_a_query(url, node)


@pytest.mark.trio
async def test_a_query_on_trio(url: str, node: FakeNode) -> None:
    await check_a_query(url, node)


class Tensor:
    """As much of a torch tensor as the client may rely on."""

    def __init__(self, array: Any) -> None:
        self._array = array

    def detach(self) -> Tensor:
        return self

    def cpu(self) -> Tensor:
        return self

    def numpy(self) -> Any:
        return self._array


@pytest.mark.trio
@pytest.mark.parametrize(
    "x",
    [
        [1, 0, 0],
        [[1, 0, 0]],
        np.array([1, 0, 0], np.float32),
        np.array([[1, 0, 0]], np.int64),
        np.array([True, False, False]),
        np.array([[1, 0, 0]], ">f8"),
        np.array([[1, 9, 0, 9, 0]])[:, ::2],  # not contiguous
        Tensor(np.array([1.0, 0, 0])),
        np.array([1.0, 0, 0], np.longdouble),
    ],
)
async def test_inputs_of_many_kinds_arrive_as_the_same_numbers(url: str, node: FakeNode, x: object) -> None:
    async with Client(url) as client:
        await client.query("vectors", x)

    assert node.requests[0].inputs.tolist() == [[1, 0, 0]]


@pytest.mark.trio
@pytest.mark.parametrize(
    ("x", "says"),
    [
        ([[1, 2], [3]], "not rectangular"),
        ([1, float("nan"), 3], "NaN or infinity at (1,)"),
        ([1, float("inf"), 3], "NaN or infinity"),
        (["a", "b", "c"], "not made of numbers"),
        ([1j, 2, 3], "not made of numbers"),
        ([None, 1, 2], "not made of numbers"),
        ([], "empty"),
        (3.0, "single number"),
    ],
)
async def test_what_is_no_input_is_refused_before_it_is_sent(url: str, node: FakeNode, x: object, says: str) -> None:
    async with Client(url) as client:
        with pytest.raises(errors.InputError, match=r"the input") as caught:
            await client.query("vectors", x)

    assert says in caught.value.message
    assert node.requests == []


@both
def test_what_is_revealed_is_all_that_comes(url: str, backend: str) -> None:
    async def run() -> None:
        async with Client(url) as client:
            label = await client.query("vectors", [1, 0, 0], reveal="label")
            top = await client.query("vectors", [1, 0, 0], reveal="top1")
        assert (label.probabilities, label.top, label.labels) == (None, None, ("one",))
        assert (top.probabilities, top.top is None) == (None, False)

    on(backend, run)


@both
@pytest.mark.parametrize(
    "error",
    [
        errors.SessionAborted("party 1 went silent", culprit=PARTIES[1], round=7, hint="ask again"),
        errors.PeerRefused("no", peer=DEALER, reason="busy"),
        errors.PeerTimeout("silent", peer=DEALER),
        errors.TooFewParties("1 of 2 parties", hint="wait for more"),
        errors.SessionCancelled("given up"),
        errors.RangeExceeded("too large"),
    ],
)
def test_errors_arrive_as_the_class_and_with_the_details_that_were_raised(
    url: str, node: FakeNode, backend: str, error: errors.FinodeError
) -> None:
    async def fail(_: QueryRequest, __: ProgressCallback) -> None:
        raise error

    async def run() -> None:
        async with Client(url) as client:
            with pytest.raises(errors.FinodeError) as caught:
                await client.query("vectors", [1, 0, 0])
        found = caught.value
        assert type(found) is type(error)
        assert (found.message, found.hint) == (error.message, error.hint)
        for name in ("culprit", "round", "peer", "reason"):
            assert getattr(found, name, None) == getattr(error, name, None)

    node.before_answer = fail
    on(backend, run)


@both
def test_errors_before_the_stream_arrive_too(url: str, backend: str) -> None:
    async def run() -> None:
        async with Client(url) as client:
            with pytest.raises(errors.UnknownService, match="chest-xray") as caught:
                await client.query("chest-xray", [1, 0, 0])
            assert "digits, vectors" in caught.value.hint
            with pytest.raises(errors.InputError, match="shape"):
                await client.query("vectors", [1, 0])

    on(backend, run)


@both
def test_cancelling_the_query_cancels_the_session(url: str, node: FakeNode, backend: str) -> None:
    async def forever(_: QueryRequest, __: ProgressCallback) -> None:
        await trio.sleep_forever()

    async def run() -> None:
        begun = anyio.Event()

        async def ask() -> None:
            async with Client(url) as client:
                await client.query("vectors", [1, 0, 0], on_progress=lambda _: begun.set())

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            with anyio.fail_after(5):
                await begun.wait()
            group.cancel_scope.cancel()
        assert await became_true(node.query_cancelled.is_set)

    node.before_answer = forever
    on(backend, run)


@pytest.mark.asyncio
async def test_cancelling_an_asyncio_task_cancels_the_session(url: str, node: FakeNode) -> None:
    async def forever(_: QueryRequest, __: ProgressCallback) -> None:
        await trio.sleep_forever()

    node.before_answer = forever
    begun = asyncio.Event()
    async with Client(url) as client:
        task = asyncio.create_task(client.query("vectors", [1, 0, 0], on_progress=lambda _: begun.set()))
        await asyncio.wait_for(begun.wait(), 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await became_true(node.query_cancelled.is_set)


@both
def test_an_exception_in_on_progress_comes_out_and_cancels_the_session(url: str, node: FakeNode, backend: str) -> None:
    async def forever(_: QueryRequest, __: ProgressCallback) -> None:
        await trio.sleep_forever()

    async def complain(progress: Progress) -> None:
        await anyio.lowlevel.checkpoint()
        raise ZeroDivisionError(progress.phase)

    async def run() -> None:
        async with Client(url) as client:
            with pytest.raises(ZeroDivisionError, match="committee"):
                await client.query("vectors", [1, 0, 0], on_progress=complain)
            assert await became_true(node.query_cancelled.is_set)
            assert await client.ready()  # the client is still of use

    node.before_answer = forever
    on(backend, run)


async def became_true(condition: Callable[[], bool]) -> bool:
    """Wait for something in the server's thread, which has an event loop of its own."""
    for _ in range(500):
        if condition():
            return True
        await anyio.sleep(0.01)
    return condition()


@both
def test_administration_is_typed(url: str, node: FakeNode, backend: str) -> None:
    async def run() -> None:
        async with Client(url) as client:
            assert (await client.status()).peer == PEER
            assert [peer.connected for peer in await client.peers()] == [True, False]
            assert (await client.services())[0].input.shape == (1, 2, 2)
            assert (await client.models())[0].operators == ("Gemm", "Relu")
            assert (await client.sessions())[0].session == SESSION
            assert await client.cancel(SESSION)
            assert not await client.cancel("an odd id")
            await client.reload()
            assert await client.ready()
            node.is_ready = False
            assert not await client.ready()
        assert node.cancelled == [SESSION, "an odd id"]
        assert node.reloads == 1

    on(backend, run)


@both
def test_no_daemon_is_told_as_such(backend: str) -> None:
    async def run() -> None:
        async with Client("http://127.0.0.1:1") as client:
            with pytest.raises(errors.DaemonUnavailable, match="no daemon answers") as caught:
                await client.status()
            assert "finode start" in caught.value.hint
            with pytest.raises(errors.DaemonUnavailable):
                await client.query("vectors", [1, 0, 0])
            assert not await client.ready()

    on(backend, run)


def answering(*lines: str, status: int = 200) -> Client:
    """A client whose daemon answers with these lines whatever is asked."""
    client = Client("http://127.0.0.1:1")
    text = "".join(line + "\n" for line in lines)
    client._http = httpx.AsyncClient(
        transport=httpx.MockTransport(lambda _: httpx.Response(status, text=text)), base_url="http://127.0.0.1:1"
    )
    return client


@pytest.mark.trio
async def test_a_stream_that_ends_without_an_answer_is_an_error() -> None:
    progress = json.dumps({"type": "progress", "session": "", "phase": "rounds", "done": 0, "total": 0})
    async with answering(progress, '{"type": "alive"}', '{"type": "from a newer daemon"}') as client:
        with pytest.raises(errors.DaemonUnavailable, match="stopped before it answered"):
            await client.query("vectors", [1, 0, 0])


@pytest.mark.trio
@pytest.mark.parametrize(
    ("text", "status", "error", "says"),
    [
        ("<html>", 200, errors.DaemonUnavailable, "not a finode daemon"),
        ("[1]", 200, errors.DaemonUnavailable, "not a finode daemon"),
        ("{}", 200, errors.FinodeError, "not understood"),
        ('{"error": "no"}', 401, errors.ConfigError, "no"),
        ('{"error": "no"}', 500, errors.FinodeError, "no"),
        ("<html>", 502, errors.DaemonUnavailable, "not a finode daemon"),
        ('{"code": "from-the-future", "message": "m", "hint": "h"}', 500, errors.FinodeError, "m"),
    ],
)
async def test_what_is_no_daemon_is_told_as_such(
    text: str, status: int, error: type[errors.FinodeError], says: str
) -> None:
    async with answering(text, status=status) as client:
        with pytest.raises(error) as caught:
            await client.status()
    assert type(caught.value) is error
    assert says in caught.value.message


@pytest.mark.trio
async def test_the_token_goes_along(node: FakeNode, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with serving_in_thread(node, token="s3cret") as bound:  # noqa: S106
        url = f"http://{bound}"
        async with Client(url) as client:
            with pytest.raises(errors.ConfigError, match="bearer token"):
                await client.status()
        async with Client(url, token="s3cret") as client:  # noqa: S106
            assert (await client.status()).peer == PEER
        (tmp_path / "api.json").write_text(json.dumps({"url": url, "pid": os.getpid()}))
        (tmp_path / "finode.toml").write_text('[api]\ntoken = "s3cret"\n')
        async with Client(home=tmp_path) as client:
            assert (await client.query("vectors", [1, 0, 0])).labels == ("one",)
        monkeypatch.setenv("FINODE_API__TOKEN", "s3cret")
        async with Client(url) as client:
            assert (await client.status()).peer == PEER


def test_the_daemon_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def write(home: Path, url: str, pid: int) -> None:
        home.mkdir(exist_ok=True)
        (home / "api.json").write_text(json.dumps({"url": url, "pid": pid}))

    home, default = tmp_path / "home", tmp_path / "no-home"
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()

    assert address.find_url(None) == "http://127.0.0.1:7878"
    with pytest.raises(errors.DaemonUnavailable, match="no daemon runs on"):
        address.find_url(home)
    write(home, "http://127.0.0.1:5", dead.pid)
    with pytest.raises(errors.DaemonUnavailable, match="no daemon runs on"):
        address.find_url(home)
    write(home, "http://127.0.0.1:5", os.getpid())
    assert address.find_url(home) == "http://127.0.0.1:5"
    write(default, "http://127.0.0.1:6", os.getpid())
    assert address.find_url(None) == "http://127.0.0.1:6"
    monkeypatch.setenv("FINODE_API__BIND", "0.0.0.0:9")
    assert address.find_url(None) == "http://127.0.0.1:9"
    monkeypatch.setenv("FINODE_API__BIND", "127.0.0.1:0")
    assert address.find_url(None) == "http://127.0.0.1:6"
    assert address.url_of("[::]:7") == "http://[::1]:7"
    (default / "api.json").write_text("[]")
    assert address.read_api_address(default) is None


@pytest.mark.parametrize("url", ["127.0.0.1:7878", "ftp://x", "http://"])
def test_a_wrong_url_is_refused(url: str) -> None:
    with pytest.raises(errors.ConfigError, match="not the URL"):
        Client(url)


@pytest.mark.slow
def test_importing_the_client_loads_no_engine_and_no_network() -> None:
    code = (
        "import sys, finode.client, finode; finode.Client; "
        "bad = {'torch', 'libp2p', 'onnx', 'trio', 'fastapi', 'hypercorn'} & set(sys.modules); "
        "sys.exit(', '.join(sorted(bad)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
