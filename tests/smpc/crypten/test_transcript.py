"""Transcripts of CrypTen's runs, and what the engine refuses: statistics and feedback."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from finode.errors import InputError
from finode.smpc.crypten.communicator import RoundCommunicator
from finode.smpc.crypten.engine import CryptenEngine
from finode.smpc.crypten.threads import Link, ThreadRun
from finode.smpc.engine import Exchange, Finished
from tests.smpc import models
from tests.smpc.crypten.parties import carry, committee_of

PARTIES = 3
OWN = [torch.tensor([1, 2]), torch.tensor([10, 20]), torch.tensor([100, 200])]
LIKE = torch.tensor([0, 0])
CALLS: dict[str, Callable[[RoundCommunicator, int], Any]] = {
    "all_reduce": lambda comm, party: comm.all_reduce(OWN[party]),
    "reduce": lambda comm, party: comm.reduce(OWN[party], 1),
    "gather": lambda comm, party: comm.gather(OWN[party], 1),
    "all_gather": lambda comm, party: comm.all_gather(OWN[party]),
    "broadcast": lambda comm, party: comm.broadcast(OWN[party].clone(), 1),
    "scatter": lambda comm, party: comm.scatter(OWN if party == 1 else [LIKE] * 3, 1),
    "barrier": lambda comm, party: comm.barrier(),
}


def runs_of(call: Callable[[RoundCommunicator, int], Any]) -> list[ThreadRun]:
    def run_of(party: int) -> ThreadRun:
        def body(link: Link) -> Any:
            return call(RoundCommunicator(party, PARTIES, link.exchange, link.transcript), party)

        return ThreadRun(body, party, PARTIES)

    return [run_of(party) for party in range(PARTIES)]


def test_every_call_leaves_one_transcript_at_all_parties() -> None:
    digests = {name: {done.transcript for done in carry(runs_of(call)).finished} for name, call in CALLS.items()}

    assert {name: len(found) for name, found in digests.items()} == dict.fromkeys(CALLS, 1)
    assert len(set.union(*digests.values())) == len(CALLS)


@pytest.mark.parametrize("name", ["all_reduce", "all_gather", "broadcast"])
def test_a_party_that_tells_another_something_else_stands_out(name: str) -> None:
    runs = runs_of(CALLS[name])
    sent = [outcome for outcome in (run.start() for run in runs) if isinstance(outcome, Exchange)]
    received = [{j: bytearray(sent[j].frames[i]) for j in range(PARTIES) if j != i} for i in range(PARTIES)]
    received[0][1][-1] ^= 1

    outcomes = [run.resume(frames) for run, frames in zip(runs, received, strict=True)]

    found = [outcome.transcript for outcome in outcomes if isinstance(outcome, Finished)]
    assert found[1] == found[2] != found[0]


@pytest.mark.slow
@pytest.mark.parametrize("parties", [2, 3])
def test_a_program_ends_with_one_transcript_at_all_parties(parties: int) -> None:
    makers = [models.mlp(1)]
    committee = committee_of(models.program_of(makers, parties=parties), makers, np.full((1, 1, 8, 8), 0.5))

    finished = carry(committee.runs()).finished

    assert len({done.transcript for done in finished}) == 1
    assert all(done.rest is None for done in finished)


@pytest.mark.slow
def test_padding_is_not_answered() -> None:
    makers = [models.mlp(1)]
    committee = committee_of(models.program_of(makers, batch=2), makers, np.full((2, 1, 8, 8), 0.5))

    finished = carry([committee.run(party, count=1) for party in range(committee.program.parties)]).finished

    shares = [np.frombuffer(done.value, dtype="<i8").reshape(2, -1) for done in finished]
    shown = sum(shares[1:], start=shares[0])
    assert shown[0].any()
    assert not shown[1].any()


def test_statistics_and_feedback_are_the_native_engines() -> None:
    program = models.program_of([models.mlp(1)], statistics=True)

    with pytest.raises(InputError, match="computes no statistics"):
        CryptenEngine().correction_bytes(program)
    with pytest.raises(InputError, match="keeps no votes"):
        CryptenEngine().feedback(program, 0, b"", b"", {1: bytes(32)}, count=1)
