"""Queries that name the engine, through all roles on memory links."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import trio

from finode.errors import TooFewParties
from finode.node import node as node_module
from finode.node.interface import QueryProgress, QueryRequest
from finode.node.pool import WorkerPool
from finode.smpc import sharing
from finode.smpc.crypten import availability
from finode.smpc.engine import Program
from finode.wire import canonical
from tests.fakes.federation import federation_of, toy_plan, toy_probabilities, toy_weights, until

# Here all workers compute in the test's one thread, hundreds of rounds each: no deadline may depend on that.
PATIENT: dict[str, Any] = {
    "session": dict.fromkeys(("answer_timeout_s", "deploy_timeout_s", "deal_timeout_s", "round_timeout_s"), 60.0),
    "querier": {"deadline_s": 300.0},
}
LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner", "party"], "models": [1], **PATIENT},
    "beta": {"roles": ["owner", "party"], "models": [2], **PATIENT},
    "gamma": {"roles": ["party"], **PATIENT},
    "delta": {"roles": ["dealer"], **PATIENT},
    "asker": {"roles": ["querier"], **PATIENT},
}
needs_crypten = pytest.mark.skipif(not availability.is_available(), reason=availability.problem())


async def _no_progress(progress: QueryProgress) -> None:
    return None


def _inputs(batch: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(7).normal(size=(batch, 4))


@needs_crypten
@pytest.mark.slow
@pytest.mark.trio
@pytest.mark.parametrize("parties", [2, 3])
async def test_both_engines_answer_the_same_query(tmp_path: Path, parties: int) -> None:
    x = _inputs(6)
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        node = members["asker"].node
        native = await node.query(QueryRequest(service="toy", inputs=x, parties=parties), _no_progress)
        crypten = await node.query(
            QueryRequest(service="toy", inputs=x, parties=parties, engine="crypten"), _no_progress
        )

    assert (native.engine, crypten.engine) == ("native", "crypten")
    assert crypten.committee.id != native.committee.id
    expected = toy_probabilities([1, 2], x)
    assert crypten.probabilities is not None
    assert np.abs(np.array(crypten.probabilities) - expected).max() < 0.004
    two_best = np.sort(expected, axis=1)[:, -2:]
    clear = two_best[:, 1] - two_best[:, 0] > 0.004
    assert (np.array(crypten.label_indices) == native.label_indices)[clear].all()
    assert crypten.traffic.rounds > native.traffic.rounds
    assert crypten.traffic.offline_bytes > 0


@needs_crypten
@pytest.mark.slow
@pytest.mark.trio
async def test_the_querier_may_set_its_engine_once_and_for_all(tmp_path: Path) -> None:
    asker = LAYOUT["asker"] | {"querier": PATIENT["querier"] | {"engine": "crypten"}}
    layout = LAYOUT | {"asker": asker}
    async with federation_of(tmp_path, layout) as (_, members):
        answer = await members["asker"].node.query(QueryRequest(service="toy", inputs=_inputs(1)), _no_progress)

    assert answer.engine == "crypten"


@pytest.mark.trio
async def test_a_node_without_crypten_does_not_announce_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "available_engines", lambda: ("native",))
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        node = members["asker"].node
        with pytest.raises(TooFewParties, match="without the engine crypten"):
            await node.query(QueryRequest(service="toy", inputs=_inputs(1), engine="crypten"), _no_progress)
        answer = await node.query(QueryRequest(service="toy", inputs=_inputs(1)), _no_progress)

    assert answer.engine == "native"


@pytest.mark.trio
async def test_owners_offer_their_models_to_both_engines_whatever_they_have_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_module, "available_engines", lambda: ("native",))
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        (service,) = members["asker"].node.services()

    assert {offer.engines for offer in service.offers} == {("native", "crypten")}


@needs_crypten
@pytest.mark.slow
@pytest.mark.trio
async def test_a_worker_process_deals_starts_a_run_and_ends_while_it_waits(tmp_path: Path) -> None:
    plan = toy_plan()
    program = Program(
        plans=(plan,),
        deployments=(b"d" * 32,),
        parties=2,
        batch=2,
        fractional_bits=16,
        vote="soft",
        reveal="probabilities",
    )
    share, constants, run = tmp_path / "share.bin", tmp_path / "constants.bin", b"r" * 16
    share.write_bytes(sharing.share_weights(plan, toy_weights(plan, 1), 2, 16)[0])
    query = sharing.share_input(_inputs(2), 2, 16)[0]
    of_program = {"engine": "crypten", "program": canonical.encode(program)}
    seat = {"party_index": 0, "shares": [str(share)], "constants": [str(constants)]}
    pool = WorkerPool(1, 1, structlog.get_logger())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.serve)
        async with pool.acquire() as worker:
            sizes = await worker.request({"kind": "sizes", **of_program})
            dealt = await worker.request({"kind": "deal", "run": run, **of_program}, [b"s" * 32])
            received = 0
            while (reply := await worker.request({"kind": "next", "run": run})).header["more"]:
                received += len(reply.parts[0])
            opened = await worker.request(
                {"kind": "open", "run": run, "engine": "crypten", "plans": [plan.encode()], "parties": 2, **seat},
                [bytes(32)],
            )
            await worker.request({"kind": "bundle", "bundle": b"b", **of_program, **seat}, [dealt.parts[0], bytes(32)])
            await worker.request({"kind": "stored", "bundle": b"b"})
            started = await worker.request(
                {"kind": "run", "run": run, "zero_parties": [1], "bundle": b"b"}, [query, b"k" * 32]
            )
        (pid,) = pool.pids()
        nursery.cancel_scope.cancel()
    await until(lambda: not Path(f"/proc/{pid}").exists())
    assert received == dealt.header["correction_bytes"] == sizes.header["correction_bytes"] > 0
    assert opened.header["state"] == "finished"
    assert constants.read_bytes() == b""
    assert (started.header["state"], started.header["parties"]) == ("exchange", [1])
    assert len(started.parts[0]) == started.header["expected_bytes"]
