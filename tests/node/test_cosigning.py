"""From the end of a session to its co-signed receipt, on memory links."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from finode.errors import CommitteeError, RemoteError, SessionAborted, StorageFull, WorkerDied
from finode.ledger.records import VerifiedReceipt
from finode.node.interface import QueryAnswer, QueryProgress, QueryRequest
from finode.smpc.crypten import availability
from finode.wire.cosigning import PROTOCOL, AskReport, AskSignature, Decline, DeclineReason, Report, Signature
from finode.wire.receipts import CoSignature, Outcome, Receipt, SignedReceipt
from finode.wire.shares import Fault
from finode.wire.signed import co_sign
from tests.fakes.federation import Member, federation_of, until

LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner"], "models": [1]},
    "p1": {"roles": ["party"]},
    "p2": {"roles": ["party"]},
    "p3": {"roles": ["party"]},
    "d1": {"roles": ["dealer"]},
    "asker": {"roles": ["querier"]},
}
TWO = {name: what for name, what in LAYOUT.items() if name != "p3"}


async def _silent(progress: QueryProgress) -> None:
    return None


async def _ask(members: dict[str, Member], count: int = 3, **wanted: Any) -> QueryAnswer:
    x = np.random.default_rng(3).normal(size=(count, 4))
    return await members["asker"].node.query(QueryRequest(service="toy", inputs=x, **wanted), _silent)


def _of(members: dict[str, Member], peer: str) -> Member:
    return next(member for member in members.values() if member.peer == peer)


def _members_of(members: dict[str, Member], answer: QueryAnswer) -> list[Member]:
    """Return the members that sign: parties, dealer, querier."""
    peers = (*answer.committee.parties, answer.committee.dealer, members["asker"].peer)
    return [_of(members, peer) for peer in peers]


async def _receipt(member: Member, session: str, signers: Iterable[Member]) -> VerifiedReceipt:
    """Return the receipt of a session at a member, once these have signed it and nobody else."""
    wanted = {signer.peer for signer in signers}
    await until(lambda: any(one.signers == wanted for one in member.filing.of(session)))
    return next(one for one in member.filing.of(session) if one.signers == wanted)


@asynccontextmanager
async def _blocked(members: Iterable[Member]) -> AsyncIterator[None]:
    """Nothing can be written down or signed at these members while the body runs."""
    chosen = list(members)
    for member in chosen:
        await member.holdings.signing.turn.acquire_on_behalf_of(member.filing)
    try:
        yield
    finally:
        for member in chosen:
            member.holdings.signing.turn.release_on_behalf_of(member.filing)


@pytest.mark.slow
@pytest.mark.trio
@pytest.mark.parametrize("parties", [2, 3])
async def test_all_members_sign_what_was_answered(tmp_path: Path, parties: int) -> None:
    layout = LAYOUT | {"beta": {"roles": ["owner"], "models": [2]}}
    async with federation_of(tmp_path, layout) as (_, members):
        answer = await _ask(members, parties=parties)
        everyone = _members_of(members, answer)
        found = [await _receipt(member, answer.session, everyone) for member in everyone]

        receipt = found[0].receipt
        assert {one.id for one in found} == {receipt.id}
        assert not found[0].withheld
        assert receipt.outcome is Outcome.ANSWERED
        assert receipt.count == 3  # of a batch of 4
        assert {work.rounds for work in receipt.work[:-1]} == {answer.traffic.rounds}
        assert tuple(work.bytes_sent for work in receipt.work[:-1]) == answer.traffic.bytes_sent_per_party
        assert receipt.work[-1].bundle_bytes == sum(work.bundle_bytes for work in receipt.work[:-1])
        assert receipt.work[-1].bundle_bytes == answer.traffic.offline_bytes
        assert min(work.milliseconds for work in receipt.work) > 0
        deployments = {model.deployment: model.owner for model in receipt.models}
        for peer in (*answer.committee.parties, answer.committee.dealer):
            kept = _of(members, peer).filing.deployments
            assert {one: kept[one].deployment.owner for one in kept} == deployments
        for owner in answer.committee.owners:
            assert [kept.deployment.owner for kept in _of(members, owner).filing.deployments.values()] == [owner]


@pytest.mark.skipif(not availability.is_available(), reason=availability.problem())
@pytest.mark.slow
@pytest.mark.trio
async def test_all_members_sign_what_crypten_answered(tmp_path: Path) -> None:
    patient = dict.fromkeys(("answer_timeout_s", "deploy_timeout_s", "deal_timeout_s", "round_timeout_s"), 60.0)
    layout = {name: what | {"session": patient, "querier": {"deadline_s": 300.0}} for name, what in TWO.items()}
    async with federation_of(tmp_path, layout) as (_, members):
        answer = await _ask(members, engine="crypten")
        everyone = _members_of(members, answer)
        receipt = await _receipt(everyone[0], answer.session, everyone)
        assert receipt.receipt.engine == "crypten"


@pytest.mark.slow
@pytest.mark.trio
async def test_the_answer_does_not_wait_for_the_receipt(tmp_path: Path) -> None:
    async with federation_of(tmp_path, TWO) as (_, members):
        await _ask(members)  # owners sign their deployments before the first answer
        async with _blocked(members.values()):
            answer = await _ask(members)
            assert not any(member.filing.of(answer.session) for member in members.values())
        everyone = _members_of(members, answer)
        for member in everyone:
            await _receipt(member, answer.session, everyone)


@pytest.mark.slow
@pytest.mark.trio
@pytest.mark.parametrize("liar", [0, 1])
@pytest.mark.parametrize("lie", [{"rounds": 1000}, {"transcript": b"made up"}], ids=["rounds", "transcript"])
async def test_a_party_that_lies_stands_alone(tmp_path: Path, liar: int, lie: dict[str, Any]) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        first = await _ask(members, parties=3)
        lying = _of(members, first.committee.parties[liar])

        def spoil(header: dict[str, Any]) -> None:
            if header.get("state") == "finished":
                header.update(lie)

        lying.pool.worker.spoil = spoil
        answer = await _ask(members, parties=3)
        assert answer.committee.id == first.committee.id

        honest = [member for member in _members_of(members, answer) if member is not lying]
        receipt = await _receipt(honest[0], answer.session, honest)
        assert receipt.withheld == (lying.peer,)
        assert len({work.rounds for work in receipt.receipt.work[:-1]}) == 1
        others = [one for one in lying.filing.of(answer.session) if one.id != receipt.id]
        assert all(one.signers == {lying.peer} for one in others)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_querier_that_never_signs_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(*_: object) -> None:
        return None

    async with federation_of(tmp_path, TWO) as (_, members):
        monkeypatch.setattr(members["asker"].holdings.signing, "witnesses", nothing)
        answer = await _ask(members)
        others = _members_of(members, answer)[:-1]
        receipt = await _receipt(others[0], answer.session, others)
        assert receipt.withheld == (members["asker"].peer,)
        assert receipt.receipt.price == 1000 * 3


@pytest.mark.slow
@pytest.mark.trio
async def test_a_party_that_is_lost_before_it_signs_and_signs_when_it_is_back(tmp_path: Path) -> None:
    async with federation_of(tmp_path, TWO) as (federation, members):
        first = await _ask(members)
        party, lost = (_of(members, peer) for peer in first.committee.parties)
        async with _blocked([lost]):
            answer = await _ask(members)
            federation.cut(lost.peer)
            everyone = _members_of(members, answer)
            others = [member for member in everyone if member is not lost]
            receipt = await _receipt(party, answer.session, others)
            assert receipt.withheld == (lost.peer,)
            federation.mend(lost.peer)
        for member in everyone:
            await _receipt(member, answer.session, everyone)
            assert len(member.filing.of(answer.session)) == 1


@pytest.mark.slow
@pytest.mark.trio
@pytest.mark.parametrize("culprit", [0, 1])
async def test_an_aborted_session_is_signed_with_its_culprit(tmp_path: Path, culprit: int) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        first = await _ask(members, parties=3)
        broken = _of(members, first.committee.parties[culprit])

        def spoil(header: dict[str, Any]) -> None:
            if header.get("round") == 2:
                raise WorkerDied("worker process 0 ended")

        broken.pool.worker.spoil = spoil
        with pytest.raises((SessionAborted, CommitteeError)):
            await _ask(members, parties=3, deadline_s=2.0)

        signers = [member for member in _members_of(members, first) if member is not broken]
        party = next(member for member in signers if member.peer in first.committee.parties)
        await until(lambda: any(one.receipt.verdict and one.receipt.work[0].rounds for one in _aborted(party)))
        receipt = next(one for one in _aborted(party) if one.receipt.work[0].rounds)
        receipt = await _receipt(party, receipt.receipt.session.hex(), (*signers, broken))

        assert receipt.receipt.verdict is not None
        assert receipt.receipt.verdict.culprit == broken.peer
        assert receipt.receipt.verdict.fault is Fault.WORKER_DIED
        assert receipt.receipt.transcript == b""
        assert {work.rounds for work in receipt.receipt.work[:-1]} <= {1, 2}


def _aborted(member: Member) -> list[VerifiedReceipt]:
    return [one for one in member.filing.receipts.values() if one.receipt.outcome is Outcome.ABORTED]


@pytest.mark.slow
@pytest.mark.trio
async def test_what_was_signed_and_not_filed_is_filed_after_a_restart(tmp_path: Path) -> None:
    async with federation_of(tmp_path, TWO) as (_, members):
        for member in members.values():
            member.filing.error = StorageFull("no space")
        answer = await _ask(members)
        committee, session = bytes.fromhex(answer.committee.id), bytes.fromhex(answer.session)
        for member in _members_of(members, answer)[:2]:
            while await member.holdings.signing.signed(committee, session) is None:  # noqa: ASYNC110 - it is in a file
                await trio.sleep(0.01)
        identities = {name: member.identity for name, member in members.items()}
        signed = await _of(members, answer.committee.parties[0]).holdings.signing.signed(committee, session)
    again = TWO | {"alpha": {"roles": ["owner"]}}
    async with federation_of(tmp_path, again, identities) as (_, members):
        everyone = _members_of(members, answer)
        receipt = await _receipt(everyone[0], answer.session, everyone)
        assert signed is not None
        assert receipt.signed.body == signed.body


@pytest.mark.slow
@pytest.mark.trio
async def test_a_second_body_is_not_signed_and_strangers_are_not_answered(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        answer = await _ask(members)
        everyone = _members_of(members, answer)
        found = await _receipt(everyone[0], answer.session, everyone)
        other = replace(found.receipt, ended_ms=found.receipt.ended_ms + 1)
        backing = tuple(
            CoSignature(peer=member.peer, signature=co_sign(member.identity, other.encode(), Receipt))
            for member in sorted(everyone[:2], key=lambda member: member.peer)
        )
        ask = AskSignature(receipt=SignedReceipt(body=other.encode(), order=found.signed.order, signatures=backing))
        for member in everyone[1:]:
            stream = await everyone[0].network.open(member.peer, PROTOCOL, timeout_s=2)
            await stream.send(ask)
            reply = await stream.receive(Signature, timeout_s=2)
            assert reply.body == found.signed.body
            await stream.close()

        stranger = next(members[name] for name in ("p1", "p2", "p3") if members[name] not in everyone)
        report = AskReport(
            session=found.receipt.session, committee=found.receipt.committee, serial=found.receipt.serial
        )
        for message in (ask, report):
            stream = await stranger.network.open(everyone[0].peer, PROTOCOL, timeout_s=2)
            await stream.send(message)
            with pytest.raises(RemoteError):
                await stream.receive(Signature, Report, timeout_s=2)
        await until(lambda: everyone[0].network.states()[stranger.peer].standing < 0)


@pytest.mark.slow
@pytest.mark.trio
async def test_a_session_that_nobody_saw_is_declined(tmp_path: Path) -> None:
    async with federation_of(tmp_path, TWO) as (_, members):
        stream = await members["p1"].network.open(members["p2"].peer, PROTOCOL, timeout_s=2)
        await stream.send(AskReport(session=bytes(16), committee=bytes(32), serial=bytes(16)))
        assert (await stream.receive(Decline, timeout_s=2)).reason is DeclineReason.UNKNOWN_SESSION
        await stream.close()


@pytest.mark.slow
@pytest.mark.trio
async def test_parties_that_collect_at_the_same_time_end_with_one_receipt(tmp_path: Path) -> None:
    layout = {name: what | {"session": {"cosign_pause_s": 0.001}} for name, what in LAYOUT.items()}
    async with federation_of(tmp_path, layout) as (_, members):
        answers = [await _ask(members, parties=3) for _ in range(3)]
        for answer in answers:
            everyone = _members_of(members, answer)
            bodies = set()
            for member in everyone:
                receipt = await _receipt(member, answer.session, everyone)
                bodies.add(receipt.signed.body)
                assert len(member.filing.of(answer.session)) == 1
            assert len(bodies) == 1
