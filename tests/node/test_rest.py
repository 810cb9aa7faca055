"""What follows an answer, through workers and drivers of two parties: statistics, feedback, and nothing that stays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from finode.errors import InputError, LocalProtocolError, RemoteProtocolError
from finode.identity import PeerId
from finode.node import worker as worker_module
from finode.node.channel import Buffer, Envelope
from finode.node.driver import RunDriver, RunOutcome, feedback_request
from finode.node.inbox import Inbox
from finode.node.tasks import together
from finode.node.worker import Worker
from finode.smpc import sharing
from finode.smpc.engine import Program
from finode.smpc.labels import share_labels
from finode.smpc.native import NativeEngine
from finode.smpc.randomness import fresh_seed
from finode.smpc.simulation import exchange
from finode.smpc.statistics_layout import ballot_bytes, open_statistics
from finode.wire import canonical
from tests.fakes.federation import InlineWorker, toy_plan, toy_probabilities, toy_weights

PARTIES = (PeerId("p0"), PeerId("p1"))
COUNT = 3
SEEDS = (1, 2)


def program_of(**changes: Any) -> Program:
    program = Program(
        plans=(toy_plan(), toy_plan()),
        deployments=(b"c" * 32, b"d" * 32),
        parties=2,
        batch=4,
        fractional_bits=16,
        vote="soft",
        reveal="label",
        statistics=True,
    )
    return replace(program, **changes)


@dataclass
class MemoryLane:
    """The one lane to the other party: frames go straight into its inbox."""

    own: int
    inbox: Inbox
    sent: list[int]

    def queue_round(self, run: bytes, round: int, frame: Buffer) -> bool:
        self.sent.append(round)
        self.inbox.put(self.own, round, frame)
        return True


@dataclass
class Party:
    worker: Worker
    inline: InlineWorker
    driver: RunDriver
    request: tuple[dict[str, Any], list[bytes]]
    """Of the run."""
    rounds: list[int]


def ready(tmp_path: Path, program: Program) -> list[Party]:
    """Two parties with their bundles in their workers, joined by lanes in memory."""
    engine, secret = NativeEngine(), fresh_seed()
    models = zip(program.plans, SEEDS, strict=True)
    weights = [sharing.share_weights(plan, toy_weights(plan, seed), 2, 16) for plan, seed in models]
    seeds = [[engine.mask_seed(secret, d, i) for d in program.deployments] for i in range(2)]
    opened = exchange(
        [engine.open_weights(program.plans, [shares[i] for shares in weights], seeds[i], i, 2) for i in range(2)]
    )
    dealing = engine.deal(program, secret)
    corrections = b"".join(dealing.corrections)
    query = sharing.share_input(inputs(), 2, 16)
    key = fresh_seed()
    inboxes = [Inbox(PARTIES, i) for i in range(2)]
    parties = []
    for i in range(2):
        worker, rounds, sent = Worker({"native": engine}), list[int](), list[int]()
        paths: dict[str, list[str]] = {"constants": [], "shares": []}
        for model in range(len(program.plans)):
            for kind, data in (("constants", opened.values[i][model]), ("shares", weights[model][i])):
                path = tmp_path / f"{i}-{model}-{kind}"
                path.write_bytes(data)
                paths[kind].append(str(path))
        bundle = {"engine": "native", "program": canonical.encode(program), "party_index": i, "bundle": b"b"}
        _handled(worker, {"kind": "bundle", **bundle, **paths}, dealing.seeds[i], *seeds[i])
        if i == 1:
            _handled(worker, {"kind": "feed", "bundle": b"b"}, corrections)
        _handled(worker, {"kind": "stored", "bundle": b"b"})
        inline = InlineWorker(worker)
        lane = MemoryLane(i, inboxes[1 - i], sent)
        driver = RunDriver(
            b"r" * 16, cast(Any, inline), {1 - i: cast(Any, lane)}, inboxes[i], PARTIES, 5.0, _into(rounds)
        )
        request = {"kind": "run", "bundle": b"b", "zero_parties": [1 - i], "count": COUNT}
        parties.append(Party(worker, inline, driver, (request, [query[i], key]), rounds))
    return parties


def _into(rounds: list[int]) -> Callable[[int, int], None]:
    return lambda round, bytes_sent: rounds.append(round)


def _handled(worker: Worker, header: dict[str, Any], *parts: Buffer) -> Envelope:
    reply = worker.handle(Envelope(header, parts))
    assert "error" not in reply.header, reply.header
    return reply


def inputs() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.random.default_rng(5).normal(size=(4, 4))


def float_labels(seed: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """One model's labels in floating point."""
    labels: np.ndarray[Any, np.dtype[np.int64]] = toy_probabilities([seed], inputs()).argmax(1)
    return labels


async def both(calls: list[Any]) -> list[RunOutcome]:
    outcomes: dict[int, RunOutcome] = {}

    async def of(index: int) -> None:
        outcomes[index] = await calls[index]()

    await together([lambda: of(0), lambda: of(1)])
    return [outcomes[0], outcomes[1]]


def driving(parties: list[Party], *, keep_rest: bool) -> list[Any]:
    def of(party: Party) -> Any:
        return lambda: party.driver.drive(*party.request, keep_rest=keep_rest)

    return [of(party) for party in parties]


@pytest.mark.trio
async def test_answer_then_statistics_then_feedback(tmp_path: Path) -> None:
    program = program_of()
    parties = ready(tmp_path, program)

    answers = await both(driving(parties, keep_rest=True))
    labels = sharing.reconstruct(program, [answer.parts[0] for answer in answers]).labels
    assert [answer.more for answer in answers] == [True, True]
    assert [party.worker.runs for party in parties] == [1, 1]
    rests = await both([party.driver.rest for party in parties])

    assert len({answer.transcript for answer in answers}) == len({rest.transcript for rest in rests}) == 1
    assert len(answers[0].transcript) == 32
    found = open_statistics(2, 3, [rest.parts[0] for rest in rests])
    assert found.labels.sum(1).tolist() == [COUNT, COUNT]
    assert [len(rest.parts[1]) for rest in rests] == [ballot_bytes(2, 3, COUNT)] * 2
    # One sequence of rounds on the lanes, and every byte counted once.
    assert parties[0].rounds == list(range(answers[0].rounds + rests[0].rounds))
    assert answers[0].bytes_sent + rests[0].bytes_sent == parties[0].driver.frame_bytes
    assert [party.worker.runs for party in parties] == [0, 0]
    assert not rests[0].more

    for i, inbox in enumerate([Inbox(PARTIES, 0), Inbox(PARTIES, 1)]):
        parties[i].driver = replace(parties[i].driver, run=b"f" * 16, inbox=inbox)
        lane = MemoryLane(1 - i, inbox, [])
        parties[1 - i].driver = replace(parties[1 - i].driver, lanes={i: cast(Any, lane)})
    shares, key = share_labels(labels[:COUNT], 3, 2), fresh_seed()

    def feedback(i: int) -> Any:
        return lambda: parties[i].driver.drive(
            *feedback_request("native", canonical.encode(program), i, COUNT, rests[i].parts[1], shares[i], {1 - i: key})
        )

    counts = await both([feedback(0), feedback(1)])

    correct = np.sum([np.frombuffer(count.parts[0], "<i8") for count in counts], axis=0)
    # With the answer's own labels, each model is right as often as it agreed with the vote.
    logits = [float_labels(seed) for seed in SEEDS]
    assert correct.tolist() == [int((own[:COUNT] == labels[:COUNT]).sum()) for own in logits]
    assert counts[0].rounds == 1
    assert [party.worker.runs for party in parties] == [0, 0]


@pytest.mark.trio
async def test_nothing_stays_when_nobody_asks_for_the_rest(tmp_path: Path) -> None:
    parties = ready(tmp_path, program_of())

    answers = await both(driving(parties, keep_rest=False))

    assert [answer.more for answer in answers] == [False, False]
    assert [party.worker.runs for party in parties] == [0, 0]
    with pytest.raises(LocalProtocolError, match="nothing follows"):
        await parties[0].driver.rest()


@pytest.mark.trio
async def test_dropping_a_run_drops_what_follows_it(tmp_path: Path) -> None:
    parties = ready(tmp_path, program_of())
    await both(driving(parties, keep_rest=True))

    await parties[0].driver.abandon()

    assert [party.worker.runs for party in parties] == [0, 1]


@pytest.mark.trio
async def test_a_run_without_statistics_has_a_transcript_and_no_rest(tmp_path: Path) -> None:
    parties = ready(tmp_path, program_of(statistics=False))

    answers = await both(driving(parties, keep_rest=True))

    assert [answer.more for answer in answers] == [False, False]
    assert answers[0].transcript == answers[1].transcript != bytes(32)
    assert [party.worker.runs for party in parties] == [0, 0]


@pytest.mark.trio
async def test_a_worker_keeps_so_many_rests_and_drops_the_oldest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker_module, "MAX_RESTS", 1)
    committees = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        committees.append(ready(tmp_path / name, program_of()))
    first, second = committees
    # Both committees' first parties are one node's: they share its worker.
    await both(driving(first, keep_rest=True))
    shared = first[0]
    shared.worker._bundles = second[0].worker._bundles
    second[0].driver = replace(second[0].driver, run=b"s" * 16, worker=shared.driver.worker)
    second[1].driver = replace(second[1].driver, run=b"s" * 16)

    await both(driving(second, keep_rest=True))

    assert shared.worker.runs == 1
    with pytest.raises(LocalProtocolError, match="nothing follows"):
        await shared.driver.rest()


@pytest.mark.trio
async def test_garbage_in_a_round_of_the_statistics_names_the_party_and_drops_them(tmp_path: Path) -> None:
    parties = ready(tmp_path, program_of())
    await both(driving(parties, keep_rest=True))
    reply = await parties[0].inline.request({"kind": "rest", "run": b"r" * 16})

    with pytest.raises(RemoteProtocolError) as caught:
        await parties[0].inline.request(
            {"kind": "resume", "run": b"r" * 16, "parties": [1]}, [bytes(reply.header["expected_bytes"])]
        )

    assert caught.value.peer == "1"
    assert parties[0].worker.runs == 0


@pytest.mark.trio
async def test_feedback_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    (party, _) = ready(tmp_path, program_of())

    with pytest.raises(InputError, match="ballots of 3 inputs"):
        await party.driver.drive(
            *feedback_request(
                "native", canonical.encode(program_of()), 0, COUNT, b"", bytes(2 * COUNT), {1: fresh_seed()}
            )
        )

    assert party.worker.runs == 0
