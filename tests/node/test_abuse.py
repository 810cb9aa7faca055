"""Members that use the protocol against others: each was possible once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trio

from finode.errors import RemoteProtocolError, SessionAborted
from finode.identity import PeerId
from finode.node.deployment_records import deployment_of
from finode.node.interface import QueryProgress, QueryRequest
from finode.node.lanes import MAX_EARLY_RUNS, LaneSet
from finode.node.members import Story
from finode.wire import committee as wire
from finode.wire import shares
from finode.wire.committee import Accepted, Dissolve, Propose, Refuse, Seal, Sealed
from finode.wire.directory import ModelOffer
from finode.wire.session import ROUND_HEADER
from finode.wire.shares import DeploymentWanted, Failed, Fault, OfferDeployment, Verdict
from finode.wire.signed import sign
from tests.fakes.federation import Member, federation_of, toy_plan, toy_probabilities

LAYOUT: dict[str, dict[str, Any]] = {
    "alpha": {"roles": ["owner"], "models": [1], "owner": {"allow_queriers": ("asker",)}},
    "mallory": {"roles": ["owner", "querier"], "models": [2]},
    "p1": {"roles": ["party"]},
    "p2": {"roles": ["party"]},
    "d1": {"roles": ["dealer"]},
    "asker": {"roles": ["querier"]},
}
X = np.random.default_rng(3).normal(size=(2, 4))


async def _silent(progress: QueryProgress) -> None:
    return None


async def _ask(member: Member, **options: Any) -> Any:
    return await member.node.query(QueryRequest(service="toy", inputs=X, **options), _silent)


@pytest.mark.trio
async def test_an_owner_that_claims_another_s_version_gets_at_nothing(tmp_path: Path) -> None:
    """Its deployment is another one: other masks, other shares, and its own consent only."""
    layout = LAYOUT | {"mallory": LAYOUT["mallory"] | {"querier": {"exclude": ("alpha",)}}}
    async with federation_of(tmp_path, layout) as (_, members):
        first = await _ask(members["asker"])
        store = members["p1"].holdings.store
        kept = {entry.owner: (entry.id, store.share_path(entry.id).read_bytes()) for entry in store.all()}
        alpha, mallory = members["alpha"].peer, members["mallory"].peer
        stolen = members["alpha"].models[0].offer()
        forged = ModelOffer(version=stolen.version, plan_digest=stolen.plan_digest, service="toy", price=0)
        entries = members["mallory"].holdings.offering
        own = members["mallory"].models[0]
        entries.entries = {forged.version: _Claimed(own, forged.version)}  # type: ignore[dict-item]
        members["mallory"].network.announce()

        answer = await _ask(members["mallory"])

        assert answer.committee.owners == (mallory,)
        assert np.abs(np.array(answer.probabilities) - toy_probabilities([2], X)).max() < 0.002
        after = {entry.owner: entry.id for entry in store.all() if entry.version == forged.version}
        assert after[alpha] == kept[alpha][0]
        assert after[mallory] != after[alpha]
        assert store.share_path(after[alpha]).read_bytes() == kept[alpha][1]
        assert set(first.committee.owners) == {alpha, mallory}


class _Claimed:
    """Mallory's own model under the version of another's."""

    def __init__(self, own: Any, version: bytes) -> None:
        self.version = version
        self.weights_of = own.version
        self.plan, self.service, self.price, self.operators = own.plan, own.service, 0, own.operators

    def offer(self) -> ModelOffer:
        return ModelOffer(version=self.version, plan_digest=self.plan.digest(), service="toy", price=0)


@pytest.fixture(autouse=True)
def _mallory_loads_her_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    from finode.node.owner import OwnerRole

    share = OwnerRole._share

    def lying(role: OwnerRole, entry: Any, terms: Any, deployment: bytes) -> list[bytes]:
        if isinstance(entry, _Claimed):
            from finode.smpc import sharing

            weights = role._registry.load_weights(entry.weights_of)
            return sharing.share_weights(entry.plan, weights, len(terms.parties), terms.fractional_bits)
        return share(role, entry, terms, deployment)

    monkeypatch.setattr(OwnerRole, "_share", lying)


async def _exchange(member: Member, peer: PeerId, message: Any, *answers: Any) -> Any:
    stream = await member.network.open(peer, wire.PROTOCOL, timeout_s=2)
    await stream.send(message)
    answer = await stream.receive(*answers, timeout_s=2) if answers else None
    await stream.close()
    return answer


@pytest.mark.trio
async def test_a_quota_cannot_be_had_twice_with_an_owner_s_old_signature(tmp_path: Path) -> None:
    layout = {name: what for name, what in LAYOUT.items() if name != "mallory"}
    async with federation_of(tmp_path, layout) as (_, members):
        asker = members["asker"]
        await _ask(asker)
        desk_terms = _sealed_at(members["p1"])
        accepts = _accepts_at(members["p1"])
        for name in ("p1", "p2", "d1"):
            gone = Dissolve(committee=desk_terms.committee_id(), reason="again")
            await _exchange(asker, members[name].peer, gone)
            refused = await _exchange(asker, members[name].peer, Propose(terms=desk_terms), Accepted, Refuse)
            assert isinstance(refused, Refuse)
            seal = Seal(committee=desk_terms.committee_id(), accepts=accepts)
            assert isinstance(await _exchange(asker, members[name].peer, seal, Sealed, Refuse), Refuse)


def _sealed_at(member: Member) -> wire.Terms:
    (sealed,) = member.desk.book
    return sealed.terms


def _accepts_at(member: Member) -> Any:
    (sealed,) = member.desk.book
    return sealed.accepts


@pytest.mark.trio
async def test_busy_ends_one_query_and_not_the_committee_of_others(tmp_path: Path) -> None:
    layout = {name: what for name, what in LAYOUT.items() if name != "mallory"}
    layout["p1"] = layout["p1"] | {"node": {"capacity": 1}}
    # Nothing ahead: a query would wait for the bundle that the held worker keeps from being dealt, and not ask p1.
    layout["d1"] = layout["d1"] | {"dealer": {"pool_bundles": 0}}
    async with federation_of(tmp_path, layout) as (_, members):
        asker = members["asker"]
        await _ask(asker)
        held = members["p2"].pool.worker.hold = trio.Event()
        answers: list[Any] = []

        async def first() -> None:
            answers.append(await _ask(asker))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            await trio.sleep(0.1)
            with pytest.raises(SessionAborted, match="is busy"):
                await _ask(asker, deadline_s=1.5)  # over a tick, in which committees that ended are given up
            held.set()
        assert answers[0].attempts == 1
        assert all(state.standing == 0 for state in asker.network.states().values())


@pytest.mark.trio
async def test_an_input_that_is_broken_off_costs_the_querier_nothing(tmp_path: Path) -> None:
    async with federation_of(tmp_path, LAYOUT) as (_, members):
        asker = members["asker"]
        answer = await _ask(asker)
        committee = bytes.fromhex(answer.committee.id)
        party = next(member for member in members.values() if member.peer == answer.committee.parties[0])
        stream = await asker.network.open(party.peer, shares.PROTOCOL, timeout_s=2)
        terms = next(sealed.terms for sealed in party.desk.book if sealed.id == committee)
        start = asker.start(b"s" * 16, committee, b"b" * 16, 2, 64, terms=terms)
        await stream.send(start)
        await stream.send_raw(bytes(8))
        why = Verdict(culprit=answer.committee.dealer, round=-1, fault=Fault.BUSY)
        await stream.send(Failed(subject=b"s" * 16, verdict=why))

        assert (await stream.receive(Failed, timeout_s=2)).verdict == why
        assert party.network.states()[asker.peer].standing == 0


@pytest.mark.trio
async def test_an_owner_cannot_make_a_node_without_a_seat_keep_shares(tmp_path: Path) -> None:
    layout = LAYOUT | {"p3": {"roles": ["party"]}}
    async with federation_of(tmp_path, layout) as (_, members):
        answer = await _ask(members["asker"])
        sealed = _sealed_at(next(m for m in members.values() if m.peer == answer.committee.parties[0]))
        for bystander in (members["alpha"], members["p3"]):
            if bystander.peer in sealed.parties:
                continue
            (term,) = [model for model in sealed.models if model.owner == members["mallory"].peer]
            stream = await members["mallory"].network.open(bystander.peer, shares.PROTOCOL, timeout_s=2)
            plan = toy_plan()
            await stream.send(
                OfferDeployment(
                    committee=sealed.committee_id(),
                    deployment=sealed.deployment_id(term),
                    version=term.version,
                    plan=plan.encode(),
                    share_bytes=8 * plan.weight_numel(),
                    share_digest=bytes(32),
                    signed=sign(members["mallory"].identity, deployment_of(sealed, term, 1)),
                )
            )
            assert isinstance(await stream.receive(DeploymentWanted, Failed, timeout_s=2), Failed)
            assert not bystander.holdings.store.all()


def test_a_member_cannot_shift_its_blame() -> None:
    own, teller, other = PeerId("me"), PeerId("teller"), PeerId("other")
    story = Story(own, frozenset({teller, other}))

    def culprit(accused: str, fault: Fault = Fault.PROTOCOL) -> str:
        return story.told(teller, Verdict(culprit=accused, round=1, fault=fault)).verdict.culprit

    assert culprit(other) == other
    assert culprit(own) == teller
    assert culprit("a stranger") == teller
    assert culprit("") == teller
    assert culprit("", Fault.NOT_SEALED) == ""


@pytest.mark.trio
async def test_frames_and_verdicts_of_runs_that_have_not_begun(tmp_path: Path) -> None:
    parties = tuple(PeerId(f"p{index}") for index in range(3))
    async with trio.open_nursery() as nursery:
        lanes = LaneSet(None, nursery, b"c" * 32, parties, 0, 1024, 1.0)  # type: ignore[arg-type]
        run = b"r" * 16
        lanes._deliver(1, bytearray(ROUND_HEADER.pack(run, 0) + b"frame"))
        for bad in (0, 1):  # a second one of the same party, and a round it cannot be in
            with pytest.raises(RemoteProtocolError) as caught:
                lanes._deliver(1, bytearray(ROUND_HEADER.pack(run, bad) + b"frame"))
            assert caught.value.peer == "p1"
        for number in range(MAX_EARLY_RUNS - 1):
            lanes._deliver(2, bytearray(ROUND_HEADER.pack(bytes([number]) * 16, 0) + b"frame"))
        with pytest.raises(RemoteProtocolError, match="nobody began"):
            lanes._deliver(2, bytearray(ROUND_HEADER.pack(bytes([255]) * 16, 0) + b"frame"))
        lanes._deliver(2, bytearray(ROUND_HEADER.pack(run, 0) + b"other"))
        assert await lanes.join(run).gather(0, 5, 1.0) == {1: bytearray(b"frame"), 2: bytearray(b"other")}

        over = Verdict(culprit="p1", round=0, fault=Fault.WORKER_DIED)
        lanes.fail(b"q" * 16, over)
        with pytest.raises(SessionAborted, match="p1 lost its worker"):
            await lanes.join(b"q" * 16).gather(0, 5, 1.0)
