"""A first party, and a querier, that want two signatures of one session out of honest members, or none at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finode.errors import PeerRefused
from finode.ledger.opening import Part
from finode.ledger.records import contradict, verify_statement
from finode.node.contributions import Noise
from finode.wire.committee import Vote
from finode.wire.contribution import Opening
from finode.wire.receipts import EpochStatement, Outcome, SignedStatement
from finode.wire.shares import Fault, Verdict
from tests.node.test_openings import DEALER, QUERIERS, SET, Seat, World, shares_of, sums_of, world_in


def shifted(share: bytes) -> bytes:
    """A share that takes a little from the first model's agreement: sums that could be true as well."""
    elements = np.frombuffer(share, dtype="<i8").copy()
    elements[8] -= 1000
    return elements.tobytes()


class Cheat:
    """The first party's store, which gives another share the second time."""

    def __init__(self, seat: Seat) -> None:
        self._give = seat.store.give
        self._first = b""

    def give(self, opening: Opening, noise: Noise, now_ms: int) -> bytes:
        if self._first:
            return shifted(self._first)
        self._first = self._give(opening, noise, now_ms)
        return self._first


async def opened_once(world: World) -> EpochStatement:
    for number in range(4):
        world.session(number, 10)
    world.end_epoch()
    await world.look()
    (signed,) = world.filed
    assert isinstance(signed, SignedStatement)
    return verify_statement(signed).statement


@pytest.mark.trio
async def test_a_first_party_that_opens_again_with_another_share_gets_no_second_signature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world_in(tmp_path) as world:
        monkeypatch.setattr(world.seats[0].store, "give", Cheat(world.seats[0]).give)
        statement = await opened_once(world)
        again = Opening(of=SET, epoch=statement.epoch, sessions=statement.sessions, samples=40)

        with pytest.raises(PeerRefused, match="signed other sums"):
            await world.seats[0].openings.lead(again)

        assert len(world.filed) == 1


@pytest.mark.trio
async def test_a_dealer_that_is_asked_to_sign_other_sums_signs_the_first_alone(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        statement = await opened_once(world)
        other = replace(statement, agreement=(statement.agreement[0] - 1000, statement.agreement[1]))
        assert contradict(statement, other)
        leader = world.seats[0].openings

        assert (await leader._ask_dealer(statement, statement.encode())).peer == DEALER  # the same again
        with pytest.raises(PeerRefused, match="signed other sums"):
            await leader._ask_dealer(other, other.encode())


@pytest.mark.trio
async def test_a_session_id_that_was_given_twice_is_counted_in_one_set_only(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        statement = await opened_once(world)
        twin = replace(SET, vote=Vote.HARD)
        part = Part(session=statement.sessions[0], querier=QUERIERS[0], count=10, ended_ms=world.now_ms)
        for seat, share in zip(world.seats, shares_of(sums_of(10)), strict=False):
            seat.store.add(twin, part, share)
            assert seat.store.waiting(twin.key) == []
            # Long after, when the session itself was forgotten, the statement is still known.
            seat.store.prune(world.now_ms + 100 * 86_400_000)
            seat.store.add(twin, part, share)
            assert seat.store.waiting(twin.key) == []


@pytest.mark.trio
async def test_a_receipt_made_up_under_the_id_of_a_session_holds_up_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world_in(tmp_path) as world:
        session = world.session(0, 10)
        made_up = replace(world.receipts[session], vote=Vote.HARD)
        for seat in world.seats:
            known = seat.filed.receipts_of
            monkeypatch.setattr(
                seat.openings,
                "_receipts_of",
                lambda id, known=known: [made_up, *known(id)] if id == session else known(id),
            )
        for number in range(1, 4):
            world.session(number, 10)
        world.end_epoch()

        await world.look()

        (signed,) = world.filed
        assert isinstance(signed, SignedStatement)
        assert session in verify_statement(signed).statement.sessions


@pytest.mark.trio
async def test_sums_of_a_session_that_was_aborted_by_its_receipt_are_not_opened(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        aborted = world.session(0, 10)
        verdict = Verdict(culprit=QUERIERS[0], round=1, fault=Fault.CANCELLED)
        world.receipts[aborted] = replace(world.receipts[aborted], outcome=Outcome.ABORTED, verdict=verdict)
        for number in range(1, 5):
            world.session(number, 10)
        world.end_epoch()

        await world.look()

        (signed,) = world.filed
        assert isinstance(signed, SignedStatement)
        assert aborted not in verify_statement(signed).statement.sessions
