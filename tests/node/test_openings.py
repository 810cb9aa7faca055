"""Sums of votes on shares: kept, opened once, signed by all; nothing else is ever given."""

from __future__ import annotations

import math
import re
from collections import ChainMap
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
import trio
import trio.testing

from finode.config import Config, load
from finode.errors import FinodeError, PeerRefused, PeerUnreachable
from finode.identity import Identity, PeerId
from finode.ledger.opening import Part
from finode.ledger.records import verify_statement
from finode.net.directory import Offer
from finode.net.interface import Stream
from finode.net.memory import MemoryFederation
from finode.node.contribution import noise_of
from finode.node.contributions import ContributionStore
from finode.node.filing import Record
from finode.node.openings import PAUSE_S, Openings, drawn, stated_epsilon, sums_length
from finode.smpc.statistics_layout import SCALE_BITS
from finode.wire.committee import Reveal, RewardTerms, Scheme, Vote
from finode.wire.contribution import PROTOCOL, DeploymentSet, Opening, ProposeOpening, SignStatement
from finode.wire.receipts import (
    ModelUse,
    Outcome,
    Receipt,
    SignedStatement,
    StatementKind,
    Work,
)

ROOT = Path(__file__).resolve().parents[2]
EPOCH_S = 100
NOW_MS = 1_000_000_000
IDENTITIES = [Identity.from_seed(bytes([40 + index] * 32)) for index in range(5)]
PARTIES = tuple(identity.peer_id for identity in IDENTITIES[:3])
DEALER = IDENTITIES[3].peer_id
QUERIERS = (IDENTITIES[4].peer_id, IDENTITIES[3].peer_id)
MODELS = tuple(ModelUse(version=bytes([k] * 32), owner=PARTIES[k], deployment=bytes([9 + k] * 32)) for k in range(2))
SET = DeploymentSet(
    federation="finode",
    kind=StatementKind.AGREEMENT,
    models=MODELS,
    parties=PARTIES,
    dealer=DEALER,
    vote=Vote.SOFT,
    classes=2,
    epoch_s=EPOCH_S,
    min_queries=20,
    sigma_milli=0,
)


def sums_of(count: int) -> list[int]:
    """A vector that could be true: both models always vote the first class."""
    return [count, 0, 0, 0, count, 0, count, 0, count << 15, count << 15, count << 15, count << 15]


def shares_of(vector: list[int]) -> list[bytes]:
    generator = np.random.default_rng(len(vector) + vector[0])
    pieces = [generator.integers(-(1 << 62), 1 << 62, len(vector)) for _ in PARTIES[1:]]
    last = np.array(vector, dtype=np.int64) - sum(pieces)
    return [piece.astype("<i8").tobytes() for piece in (*pieces, last)]


def _work(peer: PeerId) -> Work:
    return Work(peer=peer, rounds=1, bytes_sent=1, bundle_bytes=1, milliseconds=1)


def receipt_of(session: bytes, count: int) -> Receipt:
    return Receipt(
        federation="finode",
        session=session,
        committee=bytes(32),
        sealed=bytes(32),
        querier=QUERIERS[0],
        parties=PARTIES,
        dealer=DEALER,
        models=MODELS,
        service="toy",
        engine="native",
        vote=Vote.SOFT,
        reveal=Reveal.LABEL,
        classes=2,
        count=count,
        serial=bytes(16),
        rewards=RewardTerms(
            price=1,
            owners=700,
            parties=200,
            dealer=100,
            scheme=Scheme.DAWID_SKENE,
            epoch_s=EPOCH_S,
            min_queries=20,
            sigma_milli=0,
            credit_limit=0,
        ),
        started_ms=NOW_MS - 1,
        ended_ms=NOW_MS,
        outcome=Outcome.ANSWERED,
        verdict=None,
        work=tuple(map(_work, (*PARTIES, DEALER))),
        transcript=bytes(32),
    )


@dataclass
class Filed:
    """Keeps what is filed."""

    receipts: Mapping[bytes, Receipt]
    records: list[Record] = field(default_factory=list)

    async def file(self, record: Record, *, told: bool = False) -> None:
        self.records.append(record)

    def receipts_of(self, session: bytes) -> list[Receipt]:
        return [self.receipts[session]] if session in self.receipts else []


@dataclass
class Seat:
    store: ContributionStore
    openings: Openings
    filed: Filed
    frames: list[bytes] = field(default_factory=list)


@dataclass
class World:
    """Three parties and a dealer, their clocks, the receipts that all have, and those that the dealer has instead."""

    tmp: Path
    now_ms: int = NOW_MS
    receipts: dict[bytes, Receipt] = field(default_factory=dict)
    dealer_has: dict[bytes, Receipt] = field(default_factory=dict)
    seats: list[Seat] = field(default_factory=list)
    federation: MemoryFederation = field(default_factory=MemoryFederation)

    def session(self, number: int, count: int, *, of: DeploymentSet = SET, lacking: int | None = None) -> bytes:
        """Leave a session's shares with the parties, all but `lacking`."""
        session = number.to_bytes(16, "big")
        part = Part(session=session, querier=QUERIERS[number % 2], count=count, ended_ms=self.now_ms)
        for index, share in enumerate(shares_of(sums_of(count))):
            if index != lacking:
                self.seats[index].store.add(of, part, share)
        self.receipts[session] = receipt_of(session, count)
        return session

    def end_epoch(self) -> None:
        self.now_ms += 2 * EPOCH_S * 1000

    @property
    def filed(self) -> list[Record]:
        return self.seats[0].filed.records

    async def look(self) -> None:
        """Let the first party look once."""
        await self.seats[0].openings.look()


@asynccontextmanager
async def world_in(tmp: Path) -> AsyncIterator[World]:
    world = World(tmp)
    log = structlog.get_logger()
    async with AsyncExitStack() as stack:
        for index, identity in enumerate(IDENTITIES[:4]):
            home = tmp / str(index)
            home.mkdir()
            config: Config = load(home)
            network = await stack.enter_async_context(
                world.federation.node(identity, f"org{index}", lambda: Offer(roles=(), capacity=1, engines=()))
            )
            is_dealer = identity.peer_id == DEALER
            store = ContributionStore(home)
            filed = Filed(ChainMap(world.dealer_has, world.receipts) if is_dealer else world.receipts)
            openings = Openings(
                network,
                identity,
                store,
                filed.receipts_of,
                filed,
                lambda sigma, bits: lambda length: [(sigma << bits) // 1000] * length,
                lambda: world.now_ms,
                config,
                log,
            )

            async def serve(stream: Stream, openings: Openings = openings) -> None:
                first = await stream.receive(ProposeOpening, SignStatement, timeout_s=5)
                with suppress(PeerUnreachable):
                    if isinstance(first, ProposeOpening):
                        await openings.join(stream, first.opening)
                    elif isinstance(first, SignStatement):
                        await openings.vouch(stream, first.statement)
                await stream.close()

            network.serve(PROTOCOL, serve)
            world.seats.append(Seat(store, openings, filed))
            stack.callback(store.close)
        yield world


@pytest.mark.trio
async def test_the_sums_of_an_epoch_are_opened_and_signed_by_all(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        sessions = [world.session(number, 10) for number in range(4)]
        await world.look()
        assert world.filed == []  # the epoch is not over

        world.end_epoch()
        await world.look()

        (signed,) = world.filed
        assert isinstance(signed, SignedStatement)
        statement = verify_statement(signed).statement
        assert statement.sessions == tuple(sessions)
        assert statement.samples == 40
        assert (*statement.joint, *statement.counts, *statement.agreement, *statement.entropy) == tuple(sums_of(40))
        assert {one.peer for one in signed.signatures} == {*PARTIES, DEALER}
        await world.look()
        assert len(world.filed) == 1  # once


@pytest.mark.trio
async def test_too_few_carry_over_to_the_next_epoch(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        world.session(1, 9)
        world.session(2, 9)
        world.end_epoch()
        await world.look()
        assert world.filed == []

        world.session(3, 9)
        world.session(4, 9)
        world.end_epoch()
        await world.look()

        assert len(world.filed) == 1


@pytest.mark.trio
async def test_a_session_that_a_party_lacks_is_left_out(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    async with world_in(tmp_path) as world:
        kept = [world.session(number, 10) for number in range(4)]
        kept.append(world.session(8, 10))
        world.session(9, 10, lacking=2)
        world.end_epoch()
        await world.look()
        assert world.filed == []

        await trio.sleep(PAUSE_S)
        await world.look()

        (signed,) = world.filed
        assert isinstance(signed, SignedStatement)
        assert set(verify_statement(signed).statement.sessions) <= set(kept)


@pytest.mark.trio
async def test_an_opening_that_failed_goes_on_with_the_same_sessions_and_shares(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world_in(tmp_path) as world:
        sessions = [world.session(number, 10) for number in range(4)]
        world.end_epoch()
        withheld = world.receipts[sessions[0]]
        world.dealer_has[sessions[0]] = replace(withheld, count=9)  # it does not sign
        await world.look()
        assert world.filed == []
        (before,) = world.seats[0].store.begun(SET.key)
        world.session(7, 10)
        del world.dealer_has[sessions[0]]
        world.end_epoch()

        await trio.sleep(PAUSE_S)
        await world.look()

        (signed,) = world.filed
        assert isinstance(signed, SignedStatement)
        assert verify_statement(signed).statement.sessions == tuple(sessions)
        assert all(seat.store.gave(before) for seat in world.seats[:3])


@pytest.mark.trio
async def test_an_opening_that_cannot_be_finished_holds_up_no_other(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    async with world_in(tmp_path) as world:
        stuck = [world.session(number, 10) for number in range(4)]
        world.end_epoch()
        world.dealer_has[stuck[0]] = replace(world.receipts[stuck[0]], vote=Vote.HARD)
        await world.look()
        later = [world.session(number, 10) for number in range(4, 8)]
        world.end_epoch()

        await trio.sleep(PAUSE_S)
        await world.look()

        (signed,) = world.filed
        assert isinstance(signed, SignedStatement)
        assert verify_statement(signed).statement.sessions == tuple(later)
        assert [begun.sessions for begun in world.seats[0].store.begun(SET.key)] == [tuple(stuck)]


@pytest.mark.trio
@pytest.mark.parametrize("changes", [{"vote": Vote.HARD}, {"count": 11}, {"dealer": PARTIES[0]}])
async def test_a_session_whose_receipt_says_something_else_waits(tmp_path: Path, changes: dict[str, Any]) -> None:
    async with world_in(tmp_path) as world:
        sessions = [world.session(number, 10) for number in range(6)]
        # Session ids are queriers' choice: this receipt is of another session of the same id.
        world.receipts[sessions[5]] = _with(world.receipts[sessions[5]], **changes)
        world.end_epoch()

        await world.look()

        (signed,) = world.filed
        assert isinstance(signed, SignedStatement)
        assert sessions[5] not in verify_statement(signed).statement.sessions


@pytest.mark.trio
async def test_a_session_at_the_turn_of_an_epoch_may_end_later_at_another_party(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        world.now_ms = (NOW_MS // (1000 * EPOCH_S) + 1) * 1000 * EPOCH_S - 1
        sessions = []
        for number in range(4):
            sessions.append(world.session(number, 10, lacking=2))
            part = Part(session=sessions[-1], querier=QUERIERS[number % 2], count=10, ended_ms=world.now_ms + 2)
            world.seats[2].store.add(SET, part, shares_of(sums_of(10))[2])
        world.now_ms += 5000

        await world.look()

        (signed,) = world.filed
        assert isinstance(signed, SignedStatement)
        assert verify_statement(signed).statement.sessions == tuple(sessions)


def _with(receipt: Receipt, **changes: Any) -> Receipt:
    """Return the receipt with changes; a dealer that is a party changes places with it."""
    if "dealer" in changes:
        parties = tuple(receipt.dealer if peer == changes["dealer"] else peer for peer in receipt.parties)
        peers = (*parties, changes["dealer"])
        changes |= {"parties": parties, "work": tuple(map(_work, peers))}
    return replace(receipt, **changes)


@pytest.mark.trio
async def test_nothing_is_given_twice_in_different_company(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        sessions = [world.session(number, 10) for number in range(4)]
        world.end_epoch()
        await world.look()
        store = world.seats[1].store
        other = Opening(of=SET, epoch=world.now_ms // 100_000, sessions=tuple(sessions[:3]), samples=30)

        assert store.lacking(other) == tuple(sessions[:3])
        with pytest.raises(PeerRefused):
            store.give(other, lambda length: [0] * length, world.now_ms)


@pytest.mark.trio
@pytest.mark.parametrize("case", ["samples", "one session", "epoch"])
async def test_a_party_joins_only_what_the_rules_allow(tmp_path: Path, case: str) -> None:
    async with world_in(tmp_path) as world:
        sessions = tuple(world.session(number, 20) for number in range(2))
        epoch = world.now_ms // (1000 * EPOCH_S)
        world.end_epoch()
        opening = Opening(of=SET, epoch=epoch, sessions=sessions, samples=40)
        opening = {
            "samples": replace(opening, samples=41),
            "one session": replace(opening, sessions=sessions[:1], samples=20),
            "epoch": replace(opening, epoch=epoch + 10),
        }[case]

        with pytest.raises(FinodeError, match=r"number of inputs|too few|not over"):
            await world.seats[0].openings.lead(opening)

        assert not any(seat.store.gave(opening) for seat in world.seats[:3])


@pytest.mark.trio
async def test_a_statement_that_cannot_be_true_is_signed_by_nobody(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        for number in range(4):
            world.session(number, 10)
        # A party shifts its share of one more session: the counts of a model no longer add up.
        forged = (6).to_bytes(16, "big")
        part = Part(session=forged, querier=QUERIERS[0], count=10, ended_ms=world.now_ms)
        shares = shares_of(sums_of(10))
        bad = np.frombuffer(shares[1], dtype="<i8").copy()
        bad[4] += 3
        for seat, share in zip(world.seats, (shares[0], bad.tobytes(), shares[2]), strict=False):
            seat.store.add(SET, part, share)
        world.receipts[forged] = receipt_of(forged, 10)
        world.receipts.pop((0).to_bytes(16, "big"))
        world.end_epoch()

        await world.look()

        assert world.filed == []


@pytest.mark.trio
async def test_noise_is_in_the_share_and_stays_the_same(tmp_path: Path) -> None:
    async with world_in(tmp_path) as world:
        noisy = replace(SET, sigma_milli=2000)
        for number in range(4):
            world.session(number, 10, of=noisy)
        world.end_epoch()
        await world.look()

        (signed,) = world.filed
        assert isinstance(signed, SignedStatement)
        statement = verify_statement(signed).statement
        assert statement.counts == tuple(count + 2 * len(PARTIES) for count in (40, 0, 40, 0))
        assert statement.sigma_milli == 2000


def test_noise_covers_every_bit_of_a_sum() -> None:
    of = replace(SET, sigma_milli=1000)
    draws = np.array([drawn(noise_of, of) for _ in range(200)])
    fixed = 2 * len(of.models)

    assert draws.shape == (200, sums_length(of))
    for bit in range(SCALE_BITS):
        share = (draws[:, -fixed:] >> bit & 1).mean()
        assert abs(share - 0.5) < 6 * 0.5 / math.sqrt(200 * fixed)
    counts, scaled = draws[:, :-fixed], draws[:, -fixed:] / 2**SCALE_BITS
    assert 0.8 < counts.std() < 1.2
    assert 0.8 < scaled.std() < 1.2


def test_the_epsilon_that_is_stated_is_that_of_the_documents() -> None:
    models = tuple(replace(MODELS[0], version=bytes([k] * 32)) for k in range(5))
    table = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8").partition("## Noise")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\| \d.*", table, re.MULTILINE)
    ]

    assert len(rows) == 6
    for sigma, votes, labels in rows:
        of = replace(SET, models=models, sigma_milli=1000 * int(sigma))
        assert float(votes) == pytest.approx(stated_epsilon(of), abs=0.06)
        assert float(labels) == pytest.approx(stated_epsilon(replace(of, kind=StatementKind.LABELS)), abs=0.06)
    assert stated_epsilon(SET) == math.inf


def test_shares_survive_a_restart_and_are_wiped_when_given(tmp_path: Path) -> None:
    store = ContributionStore(tmp_path)
    part = Part(session=bytes(16), querier=QUERIERS[0], count=30, ended_ms=NOW_MS)
    other = replace(part, session=bytes([1] * 16))
    share = shares_of(sums_of(30))[0]
    store.add(SET, part, share)
    store.add(SET, part, bytes(len(share)))  # a second time changes nothing
    store.add(SET, other, share)
    store.close()

    store = ContributionStore(tmp_path)
    opening = Opening(of=SET, epoch=1, sessions=(part.session, other.session), samples=60)
    given = store.give(opening, lambda length: [], NOW_MS)
    store.close()

    store = ContributionStore(tmp_path)
    assert np.array_equal(np.frombuffer(given, "<i8"), 2 * np.frombuffer(share, "<i8"))
    assert store.give(opening, lambda length: [1] * length, NOW_MS) == given
    assert store.waiting(SET.key) == []
    assert store.sets() == [SET]
    store.finish(opening)
    assert store.sets() == []
    assert share not in (tmp_path / "contributions.db").read_bytes()
    store.close()
