"""What real worker processes take of memory: for the model that is to fit, and against the engine's own estimate."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import trio

from finode.models.onnx_import import import_onnx
from finode.node.channel import Buffer, Envelope
from finode.node.pool import WorkerPool, WorkerProcess
from finode.node.tasks import together
from finode.smpc import sharing
from finode.smpc.engine import Program
from finode.smpc.native import NativeEngine
from finode.smpc.randomness import fresh_seed
from finode.testnet.bench import models
from finode.wire import canonical

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the memory of a process"),
]

PARTY_LIMIT_BYTES = 1_500_000_000
RUN = b"r" * 16


@asynccontextmanager
async def _workers(count: int) -> AsyncIterator[list[WorkerProcess]]:
    """Worker processes as daemons start them, each of a node of its own."""
    pools = [WorkerPool(1, 1, structlog.get_logger()) for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for pool in pools:
            nursery.start_soon(pool.serve)
        workers = []
        for pool in pools:
            async with pool.acquire() as worker:
                workers.append(worker)
        yield workers
        nursery.cancel_scope.cancel()


def _status_bytes(worker: WorkerProcess, name: str) -> int:
    """Return VmRSS, what a process takes now, or VmHWM, the most that it ever took."""
    found = re.search(rf"^{name}:\s+(\d+) kB$", Path(f"/proc/{worker.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return 1024 * int(found[1])


def _megabytes(sizes: Sequence[int]) -> list[int]:
    return [round(size / 1e6) for size in sizes]


async def _each(calls: Sequence[Callable[[], Awaitable[Envelope]]]) -> list[Envelope]:
    replies: list[Envelope] = await together(calls)
    return replies


async def _run(
    workers: Sequence[WorkerProcess], requests: Sequence[tuple[dict[str, Any], list[Buffer]]]
) -> list[Envelope]:
    """Have two parties' workers run to the end; their frames go straight from one to the other."""
    replies = await _each([partial(w.request, *request) for w, request in zip(workers, requests, strict=True)])
    while replies[0].header["state"] == "exchange":
        calls = []
        for index, worker in enumerate(workers):
            header = {"kind": "resume", "run": RUN, "parties": [1 - index]}
            calls.append(partial(worker.request, header, replies[1 - index].parts))
        replies = await _each(calls)
    return replies


class Scene:
    """Two parties' workers, and all that they need for one run of the bench's model `name`."""

    def __init__(self, root: Path, name: str, count: int) -> None:
        models.write_model(name, 1, root / "model.onnx")
        imported = import_onnx(root / "model.onnx")
        self.program = Program(
            plans=(imported.plan,) * count,
            deployments=tuple(bytes([index]) * 32 for index in range(count)),
            parties=2,
            batch=1,
            fractional_bits=16,
            vote="soft",
            reveal="probabilities",
            statistics=True,
        )
        self.secret = fresh_seed()
        self._engine = NativeEngine()
        self._paths: list[dict[str, list[str]]] = []
        shares = sharing.share_weights(imported.plan, imported.weights, 2, 16)
        for party in range(2):
            (root / f"{party}-share").write_bytes(shares[party])
            constants = [str(root / f"{party}-{index}-constants") for index in range(count)]
            self._paths.append({"shares": [str(root / f"{party}-share")] * count, "constants": constants})

    def _masks(self, party: int) -> list[bytes]:
        return [self._engine.mask_seed(self.secret, deployment, party) for deployment in self.program.deployments]

    async def open_weights(self, workers: Sequence[WorkerProcess]) -> None:
        plans = [plan.encode() for plan in self.program.plans]
        header = {"kind": "open", "engine": "native", "run": RUN, "plans": plans, "parties": 2}
        await _run(
            workers, [({**header, **self._paths[i], "party_index": i}, list[Buffer](self._masks(i))) for i in range(2)]
        )

    async def answer(
        self, workers: Sequence[WorkerProcess], seeds: Sequence[Buffer], pieces: AsyncIterator[Buffer]
    ) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Give both parties a bundle and run it; return the probabilities."""
        inputs, key = sharing.share_input(models.inputs(self.program.batch), 2, 16), fresh_seed()
        header = {"kind": "bundle", "bundle": b"b", "engine": "native", "program": canonical.encode(self.program)}
        for i, worker in enumerate(workers):
            await worker.request({**header, **self._paths[i], "party_index": i}, [seeds[i], *self._masks(i)])
        async for piece in pieces:
            await workers[1].feed({"kind": "feed", "bundle": b"b"}, [piece])
        for worker in workers:
            await worker.request({"kind": "stored", "bundle": b"b"})
        runs = [{"kind": "run", "run": RUN, "bundle": b"b", "zero_parties": [1 - i]} for i in range(2)]
        replies = await _run(workers, [(run, [inputs[i], key]) for i, run in enumerate(runs)])
        output = sharing.reconstruct(self.program, [reply.parts[0] for reply in replies])
        assert output.probabilities is not None
        return output.probabilities


async def _dealt_by(dealer: WorkerProcess) -> AsyncIterator[Buffer]:
    while (reply := await dealer.request({"kind": "next", "run": b"d"})).header["more"]:
        yield reply.parts[0]


async def _dealt_here(pieces: Iterable[Buffer]) -> AsyncIterator[Buffer]:
    for piece in pieces:
        yield bytes(piece)


@pytest.mark.trio
async def test_resnet18_takes_a_party_and_a_dealer_less_than_1500_mb(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "resnet18", 1)
    async with _workers(3) as (*parties, dealer):
        deal = {"kind": "deal", "engine": "native", "run": b"d", "program": canonical.encode(scene.program)}
        await scene.open_weights(parties)
        dealt = await dealer.request(deal, [scene.secret])

        probabilities = await scene.answer(parties, dealt.parts, _dealt_by(dealer))

        peaks = [_status_bytes(worker, "VmHWM") for worker in (*parties, dealer)]
    structlog.get_logger().info("VmHWM in MB of party 0, of the last party, of the dealer", peaks=_megabytes(peaks))
    assert abs(probabilities.sum() - 1) < 0.001
    assert max(peaks) < PARTY_LIMIT_BYTES


@pytest.mark.trio
async def test_a_run_takes_no_more_memory_than_the_engine_estimates(tmp_path: Path) -> None:
    """Batches are cut by this estimate. It leaves out the weights, which are small here, and what a process takes once,
    which a run of one input has taken before."""
    engine, scene = NativeEngine(), Scene(tmp_path, "lenet", 3)
    async with _workers(2) as parties:
        await scene.open_weights(parties)
        dealing = engine.deal(scene.program, scene.secret)
        await scene.answer(parties, dealing.seeds, _dealt_here(dealing.corrections))
        scene.program = replace(scene.program, batch=32)
        before = [_status_bytes(worker, "VmRSS") for worker in parties]
        dealing = engine.deal(scene.program, scene.secret)

        await scene.answer(parties, dealing.seeds, _dealt_here(dealing.corrections))

        growth = [_status_bytes(party, "VmHWM") - held for party, held in zip(parties, before, strict=True)]
    estimate = engine.memory_bytes(scene.program)
    structlog.get_logger().info(
        "growth in MB at each party", growth=_megabytes(growth), estimate=_megabytes([estimate])
    )
    assert estimate / 2 < max(growth) < estimate
