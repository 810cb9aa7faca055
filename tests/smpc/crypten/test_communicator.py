"""Every collective among three parties, and frames that are not what the round demands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.distributed import ReduceOp

from finode.errors import LocalError, RemoteProtocolError
from finode.smpc.crypten.communicator import DryCommunicator, RoundCommunicator
from finode.smpc.crypten.threads import Link, ThreadRun
from finode.smpc.engine import Exchange
from finode.smpc.transcript import Transcript
from tests.smpc.crypten.parties import carry

PARTIES = 3
OWN = [torch.tensor([[2**62, 1]]), torch.tensor([[2**62, 2]]), torch.tensor([[2**62, 4]])]


def _each(body: Callable[[RoundCommunicator, int], Any]) -> list[Any]:
    """Return what `body` gives at each party; it makes one round."""

    def run_of(party: int) -> ThreadRun:
        def work(link: Link) -> Any:
            return body(RoundCommunicator(party, PARTIES, link.exchange, link.transcript), party)

        return ThreadRun(work, party, PARTIES)

    carried = carry([run_of(party) for party in range(PARTIES)])
    assert len(carried.frames) == 1
    return [finished.value for finished in carried.finished]


def test_all_reduce_adds_in_the_ring() -> None:
    for result in _each(lambda comm, party: comm.all_reduce(OWN[party])):
        assert result.tolist() == [[2**62 * 3 - 2**64, 7]]


def test_a_batched_xor_is_one_round() -> None:
    def body(comm: RoundCommunicator, party: int) -> Any:
        return comm.all_reduce([OWN[party], torch.tensor(party)], op=ReduceOp.BXOR, batched=True)

    for first, second in _each(body):
        assert first.tolist() == [[2**62, 7]]
        assert second.item() == 0 ^ 1 ^ 2


def test_reduce_and_gather_tell_one_party() -> None:
    reduced = _each(lambda comm, party: comm.reduce(OWN[party], 1))
    gathered = _each(lambda comm, party: comm.gather(OWN[party], 1))

    assert [result is None for result in reduced] == [True, False, True]
    assert reduced[1].tolist() == [[2**62 * 3 - 2**64, 7]]
    assert gathered[0] == gathered[2] == [None]
    assert all(torch.equal(found, own) for found, own in zip(gathered[1], OWN, strict=True))


def test_all_gather_broadcast_scatter_and_barrier() -> None:
    for found in _each(lambda comm, party: comm.all_gather(OWN[party])):
        assert all(torch.equal(left, right) for left, right in zip(found, OWN, strict=True))
    for found in _each(lambda comm, party: comm.broadcast(OWN[party].clone(), 2)):
        assert torch.equal(found, OWN[2])
    scattered = _each(lambda comm, party: comm.scatter(OWN if party == 0 else [], 0, size=(1, 2)))
    assert all(torch.equal(found, own) for found, own in zip(scattered, OWN, strict=True))
    assert _each(lambda comm, party: comm.barrier()) == [None] * PARTIES


def test_a_broadcast_shows_nobody_what_the_others_hold() -> None:
    def work(link: Link) -> None:
        RoundCommunicator(0, 2, link.exchange, link.transcript).broadcast(torch.tensor([5]), 1)

    outcome = ThreadRun(work, 0, 2).start()

    assert isinstance(outcome, Exchange)
    assert bytes(outcome.frames[1])[24:] == bytes(8)


@pytest.mark.parametrize("comm", [RoundCommunicator(0, 2, lambda frames, size: {}, Transcript()), DryCommunicator(2)])
def test_what_is_no_collective_on_ring_elements_is_refused(comm: Any) -> None:
    for call in (comm.send, comm.recv, comm.isend, comm.irecv, comm.send_obj, comm.recv_obj, comm.broadcast_obj):
        with pytest.raises(LocalError):
            call(torch.tensor([1]), 1)


def test_only_ring_elements_are_sent() -> None:
    with pytest.raises(LocalError, match="only ring elements"):
        RoundCommunicator(0, 2, lambda frames, size: {}, Transcript()).all_reduce(torch.tensor([1.5]))


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda frame: frame[:-8], "bytes instead of"),
        (lambda frame: b"nope" + frame[4:], "the header of another"),
        (lambda frame: frame[:6] + b"\x09\x00" + frame[8:], "the header of another"),
        (lambda frame: frame[:8] + b"\x07" + frame[9:], "the header of another"),
    ],
    ids=["short", "magic", "sender", "round"],
)
def test_a_malformed_frame_names_its_party(spoil: Callable[[bytes], bytes], problem: str) -> None:
    def run_of(party: int) -> ThreadRun:
        return ThreadRun(
            lambda link: RoundCommunicator(party, PARTIES, link.exchange, link.transcript).all_reduce(OWN[party]),
            party,
            PARTIES,
        )

    runs = [run_of(party) for party in range(PARTIES)]
    sent = [run.start() for run in runs]
    assert isinstance(sent[1], Exchange)
    assert isinstance(sent[2], Exchange)

    with pytest.raises(RemoteProtocolError, match=problem) as caught:
        runs[0].resume({1: sent[1].frames[0], 2: spoil(bytes(sent[2].frames[0]))})
    assert caught.value.peer == "2"
