"""Runs that wait in the middle of a computation."""

from __future__ import annotations

import gc
import threading

import pytest

from finode.errors import LocalProtocolError
from finode.smpc.crypten.threads import Link, ThreadRun
from finode.smpc.engine import Exchange, Finished


def _two_rounds(link: Link) -> bytes:
    first = link.exchange({1: b"a"}, 1)
    second = link.exchange({1: bytes(first[1]) + b"b"}, 2)
    return bytes(second[1])


def _threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "crypten-run"]


def test_a_run_hands_over_its_rounds_and_its_value() -> None:
    run = ThreadRun(_two_rounds, 0, 2)

    first = run.start()
    second = run.resume({1: b"x"})
    end = run.resume({1: b"yz"})

    assert isinstance(first, Exchange)
    assert (first.round, first.frames, first.expected_bytes) == (0, {1: b"a"}, 1)
    assert isinstance(second, Exchange)
    assert (second.round, second.frames, second.expected_bytes) == (1, {1: b"xb"}, 2)
    assert isinstance(end, Finished)
    assert (end.value, end.rounds, end.bytes_sent) == (b"yz", 2, 3)
    assert _threads() == []


def test_an_error_of_the_computation_is_raised_where_it_was_resumed() -> None:
    def body(link: Link) -> None:
        link.exchange({1: b"a"}, 1)
        raise ZeroDivisionError("of the computation")

    run = ThreadRun(body, 0, 2)
    run.start()

    with pytest.raises(ZeroDivisionError, match="of the computation"):
        run.resume({1: b"x"})
    with pytest.raises(LocalProtocolError, match="waits for no frames"):
        run.resume({1: b"x"})
    assert _threads() == []


def test_a_dropped_run_ends_its_thread_whatever_the_computation_catches() -> None:
    caught: list[Exception] = []

    def body(link: Link) -> None:
        try:
            link.exchange({1: b"a"}, 1)
        except Exception as error:  # CrypTen does so
            caught.append(error)

    run = ThreadRun(body, 0, 2)
    run.start()
    assert len(_threads()) == 1

    del run
    gc.collect()

    assert _threads() == []
    assert caught == []


def test_misuse_is_refused() -> None:
    run = ThreadRun(_two_rounds, 0, 2)
    with pytest.raises(LocalProtocolError, match="waits for no frames"):
        run.resume({1: b"x"})
    run.start()
    with pytest.raises(LocalProtocolError, match="started once"):
        run.start()
    with pytest.raises(LocalProtocolError, match="must send one each"):
        run.resume({0: b"x"})
