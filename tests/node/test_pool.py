"""Real worker processes: warm before they are needed, replaced when they die, ended with the daemon."""

from __future__ import annotations

import os
import signal

import pytest
import structlog
import trio

from finode.errors import ConfigError, LocalError, ModelError, WorkerDied
from finode.node.pool import WorkerPool
from finode.smpc.engine import Program
from finode.wire import canonical
from tests.fakes.federation import toy_plan, until

pytestmark = pytest.mark.slow


def _program(batch: int = 2) -> Program:
    return Program(
        plans=(toy_plan(),),
        deployments=(b"d" * 32,),
        parties=2,
        batch=batch,
        fractional_bits=16,
        vote="soft",
        reveal="probabilities",
    )


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.trio
async def test_a_worker_answers_deals_dies_and_is_replaced() -> None:
    pool = WorkerPool(1, 1, structlog.get_logger())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pool.serve)
        async with pool.acquire() as worker:
            assert pool.warm == 1
            header = {"kind": "sizes", "engine": "native", "program": canonical.encode(_program())}
            expected = (await worker.request(header)).header["correction_bytes"]
            assert expected > 0

            deal = {"kind": "deal", "run": b"r" * 16, "engine": "native", "program": canonical.encode(_program())}
            dealt = await worker.request(deal, [b"s" * 32])
            assert [len(seed) for seed in dealt.parts] == [32, 32]
            received = 0
            while (reply := await worker.request({"kind": "next", "run": b"r" * 16})).header["more"]:
                received += len(reply.parts[0])
            assert received == dealt.header["correction_bytes"] == expected

            with pytest.raises(LocalError, match="internal error in the worker"):
                await worker.request({"kind": "resume", "run": b"unknown", "parties": []})
            with pytest.raises(Exception, match="No such file"):
                await worker.request(
                    {
                        "kind": "open",
                        "run": b"o" * 16,
                        "engine": "native",
                        "plans": [toy_plan().encode()],
                        "shares": ["/nonexistent/share.bin"],
                        "constants": [],
                        "party_index": 0,
                        "parties": 2,
                    },
                    [b"s" * 32],
                )

            (pid,) = pool.pids()
            os.kill(pid, signal.SIGSTOP)  # so that the request is under way when it dies
            nursery.start_soon(_kill_soon, pid)
            with pytest.raises(WorkerDied, match=str(pid)):
                await worker.request(header)
            with pytest.raises(WorkerDied):
                await worker.request(header)

        async with pool.acquire() as replacement:
            assert replacement.pid != pid
            assert (await replacement.request(header)).header["correction_bytes"] == expected
            last = replacement.pid
        nursery.cancel_scope.cancel()
    await until(lambda: not _alive(last))


async def _kill_soon(pid: int) -> None:
    await trio.sleep(0.05)
    os.kill(pid, signal.SIGKILL)


@pytest.mark.trio
async def test_a_node_that_neither_computes_nor_deals_has_no_workers() -> None:
    pool = WorkerPool(0, 1, structlog.get_logger())
    with pytest.raises(LocalError, match="no workers"):
        async with pool.acquire():
            raise ModelError("not reached")


@pytest.mark.trio
async def test_workers_without_their_device_end_the_pool_and_are_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    pool = WorkerPool(2, 1, structlog.get_logger(), device="cuda")

    with pytest.raises(ConfigError, match="finds no GPU") as caught:
        await pool.serve()

    assert 'device = "cpu"' in caught.value.hint
    assert pool.pids() == ()
