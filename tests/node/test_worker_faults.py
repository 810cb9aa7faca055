"""What a worker answers when its device fails, and which failures it outlives."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import torch

from finode.node.channel import BlockingChannel, Envelope
from finode.node.worker import Worker, serve


class FailingWorker(Worker):
    def __init__(self, failures: list[Exception]) -> None:
        super().__init__({})
        self._failures = failures

    def handle(self, request: Envelope) -> Envelope:
        raise self._failures.pop(0)


@pytest.fixture
def ends() -> Iterator[tuple[BlockingChannel, BlockingChannel]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield BlockingChannel(ours), BlockingChannel(theirs)


def test_used_up_memory_is_told_and_outlived_and_a_lost_device_ends_the_worker(
    ends: tuple[BlockingChannel, BlockingChannel], capfd: pytest.CaptureFixture[str]
) -> None:
    ours, theirs = ends
    failures: list[Exception] = [
        torch.OutOfMemoryError("CUDA out of memory"),
        ValueError("a bug"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        ValueError("never asked"),
    ]
    for number in (1, 2, 3, 4):
        ours.send({"id": number, "kind": "sizes"}, ())

    serve(theirs, FailingWorker(failures))

    replies = [ours.receive() for _ in range(3)]
    headers = [reply.header for reply in replies if reply is not None]
    assert [header["id"] for header in headers] == [1, 2, 3]
    assert [header["message"] for header in headers] == [
        "the GPU's memory is used up",
        "internal error in the worker",
        "the GPU failed; a new worker starts",
    ]
    assert [header["error"] for header in headers] == ["finode-error", "local-error", "finode-error"]
    assert "session_memory_mb" in headers[0]["hint"]
    assert len(failures) == 1
    assert "CUDA out of memory" in capfd.readouterr().err
