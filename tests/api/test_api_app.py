"""The API as an ASGI application: routes, bodies, statuses and who may ask."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import structlog
import trio
from structlog.testing import LogCapture
from trio.testing import MockClock

from finode import errors
from finode.api import build_app
from finode.node.interface import ProgressCallback, QueryRequest
from tests.fakes.node import CLASSES, COMMITTEE, SESSION, SILENT, FakeNode

LIMIT = 20_000


@pytest.fixture
def node() -> FakeNode:
    return FakeNode()


@pytest.fixture
def lines() -> Iterator[list[Any]]:
    capture = LogCapture()
    structlog.configure(processors=[capture])
    yield capture.entries
    structlog.reset_defaults()


def client(
    node: FakeNode, *, url: str = "http://127.0.0.1:7878", token: str = "", headers: dict[str, str] | None = None
) -> httpx.AsyncClient:
    app = build_app(node, token=token, max_body_bytes=LIMIT, log=structlog.get_logger())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url=url, headers=headers)


def tensor(data: Any, shape: list[int], datatype: str = "FP32", **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "input", "shape": shape, "datatype": datatype, "data": data}], **more}


def compact(x: Any, service: str = "digits", **more: Any) -> dict[str, Any]:
    array = np.asarray(x, "<f8")
    data = base64.b64encode(array.tobytes()).decode()
    return {"service": service, "shape": list(array.shape), "dtype": "<f8", "data": data, **more}


async def post(node: FakeNode, path: str, body: Any) -> httpx.Response:
    async with client(node) as http:
        return await http.post(path, json=body)


@pytest.mark.trio
async def test_health_and_metadata_follow_the_protocol(node: FakeNode) -> None:
    async with client(node) as http:
        assert (await http.get("/v2")).json() == {"name": "finode", "version": "0.1.0", "extensions": []}
        assert (await http.get("/v2/health/live")).json() == {"live": True}
        assert (await http.get("/v2/health/ready")).json() == {"ready": True}
        model = (await http.get("/v2/models/digits")).json()
        assert model["inputs"] == [{"name": "input", "datatype": "FP64", "shape": [-1, 1, 2, 2]}]
        assert model["outputs"][2] == {"name": "probabilities", "datatype": "FP64", "shape": [-1, 3]}
        assert (await http.get("/v2/models/digits/ready")).json() == {"name": "digits", "ready": True}
        assert (await http.get("/v2/models/vectors/ready")).status_code == 400  # nobody offers a model

        node.is_ready = False
        not_ready = await http.get("/v2/health/ready")
        assert (not_ready.status_code, not_ready.json()) == (400, {"ready": False})
        assert (await http.get("/v2/health/live")).status_code == 200


@pytest.mark.trio
async def test_either_request_may_state_what_belongs_to_one_vote(node: FakeNode) -> None:
    options: list[dict[str, Any]] = [
        {"vote": "weighted", "weights": {"north": 2, "*": 0.5}},
        {"vote": "augmented", "copies": 3, "gamma": -1.5},
    ]
    for chosen in options:
        body = tensor([1, 0, 0, 0], [1, 1, 2, 2], parameters=chosen)
        assert (await post(node, "/v2/models/digits/infer", body)).status_code == 200
        assert (await post(node, "/finode/v1/queries", compact([[[1, 0], [0, 0]]], **chosen))).status_code == 200

    for index, request in enumerate(node.requests):
        chosen = options[index // 2]
        assert {name: getattr(request, name) for name in chosen} == chosen
    for wrong in ({"copies": 16}, {"gamma": 17}, {"weights": [1]}, {"weights": {"a": "much"}}):
        response = await post(node, "/finode/v1/queries", compact([[[1, 0], [0, 0]]], vote="augmented", **wrong))
        assert response.status_code == 400


@pytest.mark.trio
async def test_infer_answers_with_labels_and_probabilities(node: FakeNode) -> None:
    body = tensor(
        [1, 0, 0, 0, 0, 1, 1, 0],
        [2, 1, 2, 2],
        id="42",
        parameters={"parties": 3, "vote": "hard", "deadline_s": 5, "engine": "crypten", "priority": 1},
        some_extension=True,
    )

    response = await post(node, "/v2/models/digits/infer", body)

    assert response.status_code == 200
    assert response.headers["cache-control"] == "no-store"
    answer = response.json()
    assert answer["id"] == "42"
    assert answer["model_name"] == "digits"
    outputs = {output["name"]: output for output in answer["outputs"]}
    assert outputs["labels"] == {"name": "labels", "datatype": "BYTES", "shape": [2], "data": ["one", "two"]}
    assert outputs["probabilities"]["shape"] == [2, 3]
    assert outputs["probabilities"]["data"] == [0.1, 0.8, 0.1, 0.1, 0.1, 0.8]
    assert answer["parameters"]["committee"] == COMMITTEE
    assert answer["parameters"]["total_s"] == 1.0
    assert answer["parameters"]["left_out"] == SILENT
    assert all(isinstance(value, str | int | float | bool) for value in answer["parameters"].values())
    (request,) = node.requests
    assert (request.parties, request.vote, request.reveal, request.deadline_s) == (3, "hard", "probabilities", 5)
    assert request.engine == "crypten"
    assert request.inputs.dtype == np.float64


@pytest.mark.trio
@pytest.mark.parametrize(
    ("data", "shape", "datatype"),
    [
        ([[[[1, 2], [3, 4]]]], [1, 1, 2, 2], "FP64"),  # nested
        ([1, 2, 3, 4], [1, 2, 2], "INT64"),  # one input, no batch
        ([1, 2, 3, 4], [1, 1, 2, 2], "INT32"),
        ([1.0, 2, 3, 4], [1, 1, 2, 2], "FP16"),
    ],
)
async def test_infer_takes_tensors_flat_or_nested(
    node: FakeNode, data: list[Any], shape: list[int], datatype: str
) -> None:
    response = await post(node, "/v2/models/digits/infer", tensor(data, shape, datatype))

    assert response.status_code == 200, response.text
    assert node.requests[0].inputs.tolist() == [[[[1, 2], [3, 4]]]]


@pytest.mark.trio
async def test_bytes_of_an_image_service_are_images(node: FakeNode) -> None:
    response = await post(node, "/v2/models/digits/infer", tensor([0, 16, 8, 4], [1, 1, 2, 2], "UINT8"))

    assert response.status_code == 200, response.text
    assert node.requests[0].inputs.ravel().tolist() == [0, 1, 0.5, 0.25]  # the service's scale is 1/16


@pytest.mark.trio
async def test_infer_returns_the_outputs_asked_for_and_no_more_than_revealed(node: FakeNode) -> None:
    body = tensor([1, 0, 0], [3], outputs=[{"name": "labels"}, {"name": "probabilities"}])
    body["parameters"] = {"reveal": "label"}

    answer = (await post(node, "/v2/models/vectors/infer", body)).json()

    assert [output["name"] for output in answer["outputs"]] == ["labels"]
    assert "id" not in answer


@pytest.mark.trio
@pytest.mark.parametrize(
    ("body", "says"),
    [
        (tensor([1, 2, 3], [1, 3]), "shape (1, 3); expected (1, 2, 2)"),
        (tensor([1, 2, 3], [1, 1, 2, 2]), "takes 4 values, data has 3"),
        (tensor([[1, 2], [3, 4]], [1, 1, 2, 2]), "nested as (2, 2)"),
        (tensor([[1, 2], [3]], [1, 1, 2, 2]), "not rectangular"),
        (tensor([1, 2, 3, "x"], [1, 1, 2, 2]), "not all FP32 numbers"),
        (tensor([1, 2, 3, None], [1, 1, 2, 2]), "not all FP32 numbers"),
        (tensor([1, 2, 3, 0.5], [1, 1, 2, 2], "INT32"), "not all INT32 numbers"),
        (tensor([1, 2, 3, 256], [1, 1, 2, 2], "UINT8"), "does not fit UINT8"),
        (tensor([1, 2, 3, 1e300], [1, 1, 2, 2], "FP32"), "NaN or infinite"),
        (tensor([1, 2, 3, 10**400], [1, 1, 2, 2], "INT64"), "not all INT64 numbers"),
        (tensor([1, 2, 3, 4], [1, 1, 2, 2], "COMPLEX"), "'COMPLEX' is not one of"),
        (tensor([1, 2, 3, 4], [1, 1, -2, -2]), "positive"),
        (tensor([], [0, 1, 2, 2]), "positive"),
        (tensor([1, 2, 3, 4], [1, 1, 2, 2], parameters={"parties": 1}), ">= 2"),
        (tensor([1, 2, 3, 4], [1, 1, 2, 2], parameters={"vote": "loud"}), "loud"),
        (tensor([1, 2, 3, 4], [1, 1, 2, 2], parameters={"reveal": 7}), "reveal"),
        (tensor([1, 2, 3, 4], [1, 1, 2, 2], parameters={"deadline_s": 0}), "> 0"),
        (tensor([1, 2, 3, 4], [1, 1, 2, 2], parameters={"engine": "spu"}), "engine"),
        (tensor([1, 2, 3, 4], [1, 1, 2, 2], outputs=[{"name": "weights"}]), "no output 'weights'"),
        ({"inputs": []}, "one input tensor"),
        ({}, "inputs"),
        ([1], "array"),
    ],
)
async def test_what_is_wrong_with_a_tensor_is_said(node: FakeNode, body: Any, says: str) -> None:
    response = await post(node, "/v2/models/digits/infer", body)

    assert response.status_code == 400
    assert says in response.json()["error"]
    assert node.requests == []


@pytest.mark.trio
@pytest.mark.parametrize("body", [b"", b"{", b'{"inputs": NaN}', b"\xff\xfe", b"[" * 10_000])
async def test_what_is_not_json_is_refused(node: FakeNode, body: bytes) -> None:
    async with client(node) as http:
        for path in ("/v2/models/digits/infer", "/finode/v1/queries"):
            response = await http.post(path, content=body)
            assert response.status_code == 400
            assert "JSON" in response.json()["error"] or "wrong" in response.json()["error"]


@pytest.mark.trio
@pytest.mark.parametrize(
    ("change", "status", "says"),
    [
        ({"dtype": ">f8"}, 400, "dtype '>f8'"),
        ({"dtype": "O"}, 400, "dtype 'O'"),
        ({"shape": [3, 1, 2, 2]}, 400, "bytes"),
        ({"shape": [2**40, 2**40]}, 400, "bytes"),
        ({"data": "@@@"}, 400, "base64"),
        ({"colour": 1}, 400, "colour"),
        ({"service": "chest-xray"}, 404, "services known: digits, vectors"),
        ({"parties": 17}, 400, "16"),
    ],
)
async def test_what_is_wrong_with_a_compact_query_is_said(
    node: FakeNode, change: dict[str, Any], status: int, says: str
) -> None:
    response = await post(node, "/finode/v1/queries", {**compact(np.ones((1, 1, 2, 2))), **change})

    assert response.status_code == status
    assert says in response.json()["error"]


@pytest.mark.trio
async def test_nan_in_a_compact_query_is_refused(node: FakeNode) -> None:
    response = await post(node, "/finode/v1/queries", compact([[[[0, 1], [np.nan, 1]]]]))

    assert response.status_code == 400
    assert "NaN" in response.json()["error"]
    assert response.json()["code"] == "input-error"


@pytest.mark.trio
async def test_a_query_streams_progress_and_then_its_answer(node: FakeNode) -> None:
    response = await post(node, "/finode/v1/queries", compact([[[1, 0], [0, 0]]], vote="hard"))

    assert response.headers["content-type"] == "application/x-ndjson"
    found = [httpx.Response(200, text=line).json() for line in response.text.splitlines()]
    assert [line["type"] for line in found] == ["progress"] * 4 + ["answer"]
    assert found[0] == {
        "type": "progress",
        "session": SESSION,
        "phase": "committee",
        "done": 1,
        "total": 2,
        "detail": "the committee",
    }
    assert found[-1]["labels"] == ["one"]
    assert found[-1]["committee"]["id"] == COMMITTEE
    assert node.requests[0].inputs.shape == (1, 1, 2, 2)


@pytest.mark.trio
async def test_a_slow_query_says_that_it_is_alive(node: FakeNode, autojump_clock: MockClock) -> None:
    async def slowly(_: QueryRequest, __: ProgressCallback) -> None:
        await trio.sleep(12)

    node.before_answer = slowly

    response = await post(node, "/finode/v1/queries", compact([[[1, 0], [0, 0]]]))

    types = [httpx.Response(200, text=line).json()["type"] for line in response.text.splitlines()]
    assert types == ["progress"] * 4 + ["alive", "alive", "answer"]


@pytest.mark.trio
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.TooFewParties("1 of 2 parties", hint="wait"), 503),
        (errors.SessionAborted("lost", culprit="12D3KooWx", round=7), 502),
        (errors.SessionCancelled("given up"), 409),
        (errors.PeerTimeout("silent", peer="12D3KooWx"), 504),
        (errors.PeerRefused("no", peer="12D3KooWx", reason="busy"), 502),
        (errors.RangeExceeded("too large"), 400),
        (errors.UnknownService("none"), 404),
        (errors.StorageFull("full"), 507),
        (errors.WorkerDied("gone"), 500),
        (errors.LocalProtocolError("a bug"), 500),
    ],
)
async def test_errors_of_a_query_have_a_status_or_a_line(
    node: FakeNode, error: errors.FinodeError, status: int
) -> None:
    async def fail(_: QueryRequest, __: ProgressCallback) -> None:
        raise error

    node.before_answer = fail

    inferred = await post(node, "/v2/models/digits/infer", tensor([1, 2, 3, 4], [1, 1, 2, 2]))
    streamed = await post(node, "/finode/v1/queries", compact(np.ones((1, 2, 2))))

    assert inferred.status_code == status
    assert inferred.json()["code"] == error.code
    assert error.message in inferred.json()["error"]
    last = httpx.Response(200, text=streamed.text.splitlines()[-1]).json()
    assert (last["type"], last["code"], last["message"], last["hint"]) == (
        "error",
        error.code,
        error.message,
        error.hint,
    )
    for name in ("culprit", "round", "peer", "reason"):
        assert last.get(name) == getattr(error, name, None)


@pytest.mark.trio
async def test_an_unexpected_exception_is_logged_and_not_shown(node: FakeNode, lines: list[Any]) -> None:
    async def fail(_: QueryRequest, __: ProgressCallback) -> None:
        raise KeyError("a secret detail")

    node.before_answer = fail

    inferred = await post(node, "/v2/models/digits/infer", tensor([1, 2, 3, 4], [1, 1, 2, 2]))
    streamed = await post(node, "/finode/v1/queries", compact(np.ones((1, 2, 2))))

    assert inferred.status_code == 500
    assert inferred.json()["error"] == "internal error, see the daemon's log"
    assert "secret detail" not in inferred.text + streamed.text
    assert streamed.text.splitlines()[-1].startswith('{"type":"error"')
    assert len(lines) == 2
    assert all(line["log_level"] == "error" for line in lines)


@pytest.mark.trio
async def test_administration(node: FakeNode) -> None:
    async with client(node) as http:
        assert (await http.get("/finode/v1/status")).json()["organization"] == "Clinic South"
        assert (await http.get("/finode/v1/peers")).json()["peers"][1]["rtt_ms"] is None
        assert (await http.get("/finode/v1/services")).json()["services"][0]["classes"] == list(CLASSES)
        assert (await http.get("/finode/v1/models")).json()["models"][0]["parameters"] == 1234
        assert (await http.get("/finode/v1/sessions")).json()["sessions"][0]["session"] == SESSION
        assert (await http.post("/finode/v1/reload")).json() == {"reloaded": True}
        assert node.reloads == 1
        assert (await http.delete(f"/finode/v1/sessions/{SESSION}")).json() == {"cancelled": True}
        missing = await http.delete("/finode/v1/sessions/nope")
        assert (missing.status_code, node.cancelled) == (404, [SESSION, "nope"])

        node.reload_error = errors.ConfigError("roster.toml is not valid TOML", hint="mend it")
        broken = await http.post("/finode/v1/reload")
        assert broken.status_code == 409
        assert broken.json()["error"] == "roster.toml is not valid TOML; mend it"


@pytest.mark.trio
async def test_what_is_not_there_says_so_in_the_same_form(node: FakeNode) -> None:
    async with client(node) as http:
        missing, wrong_verb, unknown = [
            await http.get("/nope"),
            await http.post("/finode/v1/status"),
            await http.get("/v2/models/nope"),
        ]
        assert [response.status_code for response in (missing, wrong_verb, unknown)] == [404, 405, 404]
        assert all("error" in response.json() for response in (missing, wrong_verb, unknown))
        for path in ("/docs", "/redoc", "/openapi.json"):
            assert (await http.get(path)).status_code == 404


@pytest.mark.trio
async def test_a_body_over_the_limit_is_refused(node: FakeNode) -> None:
    async with client(node) as http:
        for path in ("/finode/v1/queries", "/v2/models/digits/infer"):
            response = await http.post(path, content=b"x" * (LIMIT + 1))
            assert response.status_code == 413
            assert "20000 bytes" in response.json()["error"]


@pytest.mark.trio
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"host": "127.0.0.1:7878"}, 200),
        ({"host": "localhost:7878"}, 200),
        ({"host": "[::1]:7878"}, 200),
        ({"host": "evil.example:7878"}, 403),  # a name rebound to 127.0.0.1
        ({"host": "127.0.0.1.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "http://127.0.0.1:7878"}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 200),
    ],
)
async def test_web_pages_are_kept_out(node: FakeNode, headers: dict[str, str], status: int) -> None:
    async with client(node, headers=headers) as http:
        assert (await http.get("/finode/v1/status")).status_code == status


@pytest.mark.trio
@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        ("Bearer s3cret", 200),
        ("bearer s3cret", 200),
        ("Bearer wrong", 401),
        ("Bearer ", 401),
        ("Basic s3cret", 401),
        ("s3cret", 401),
        ("", 401),
        ("Bearer s3cr\xe9t", 401),
    ],
)
@pytest.mark.parametrize("url", ["http://127.0.0.1:7878", "http://10.1.2.3:7878"])
async def test_the_token_is_demanded_when_set(node: FakeNode, url: str, authorization: str, status: int) -> None:
    async with client(node, url=url, token="s3cret") as http:  # noqa: S106
        given = [(b"authorization", authorization.encode("latin-1"))] if authorization else []
        response = await http.get("/v2/health/live", headers=httpx.Headers(given))

    assert response.status_code == status
    assert status == 200 or response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.trio
async def test_off_loopback_nothing_is_served_without_a_token(node: FakeNode) -> None:
    async with client(node, url="http://10.1.2.3:7878") as http:
        response = await http.get("/finode/v1/status")

    assert response.status_code == 403
    assert "token" in response.json()["error"]
