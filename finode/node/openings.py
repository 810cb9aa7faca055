"""Opens the sums of an epoch and has them signed: /finode/contribution/1.

The first party of a deployment set leads. At the end of an epoch it proposes what may be opened of what waits; every
other party checks that by its own records. The leader commits to its share before it sees another one, so that it
cannot choose it; every party adds up the shares itself and signs what it got, then the dealer signs, which compares
the sessions with the receipts that it has, and at last the first party. Each writes down what it signs before it does,
and never signs other sums of one of these sessions: a first party that shows it others, to choose among them or to hold
two signatures against it, gets none. One signature that lacks, and there is no statement: the opening is tried again,
with the same sessions and the same shares, until there is one; other sessions go on meanwhile.

Shares have no authentication codes: a party that adds something to its own share shifts the sums. What cannot be true
is found (`finode.ledger.opening.contradiction_in`); what is consistently false is not. docs/rewards.md says so.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import trio
from structlog.typing import FilteringBoundLogger

from finode.config import Config
from finode.errors import FinodeError, PeerRefused, RemoteProtocolError
from finode.identity import Identity, PeerId
from finode.ledger.opening import Part, contradiction_in, largest_opening, may_open
from finode.net.interface import Network, Stream
from finode.node.contributions import ContributionStore, Noise
from finode.node.filing import Filing
from finode.node.tasks import together
from finode.smpc.engine import Buffer
from finode.smpc.noise import epsilon, zcdp
from finode.smpc.statistics_layout import SCALE_BITS, open_statistics, sensitivity, statistics_length
from finode.wire.contribution import (
    PROTOCOL,
    SALT_BYTES,
    CommitShare,
    DeploymentSet,
    Opening,
    OpeningReady,
    OpenShares,
    ProposeOpening,
    SignStatement,
    StatementSigned,
)
from finode.wire.receipts import CoSignature, EpochStatement, Outcome, Receipt, SignedStatement, StatementKind
from finode.wire.shares import Failed, Fault, Verdict
from finode.wire.signed import check_co_signature, co_sign

DELTA = 1e-6
"""At which epsilon is stated."""
NoiseOf = Callable[[int, int], Noise]
DRAW_S = 2e-4
"""Of a number of noise, on a slow machine; the sums of many models and classes have up to 2^18 of them."""
LOOK_S = 1.0
"""How often the first party looks whether an epoch ended."""
GRACE_MS = 1500
"""Sessions at an epoch's end are co-signed and told before its sums are opened."""
CLOCK_SKEW_MS = 60_000
PAUSE_S = 5.0
"""Before an opening that failed is tried again; doubled each time."""
LONGEST_PAUSE_S = 600.0


def sums_length(of: DeploymentSet) -> int:
    """Return the elements of one party's share of a set's sums."""
    models = len(of.models)
    return models if of.kind is StatementKind.LABELS else statistics_length(models, of.classes)


def statement_of(opening: Opening, shares: Sequence[Buffer]) -> EpochStatement:
    """Return the statement that the shares of all parties add up to.

    Raises `MalformedMessage` when a sum is out of range, which honest shares never are.
    """
    of = opening.of
    statement: dict[str, Any] = {
        "federation": of.federation,
        "kind": of.kind,
        "epoch": opening.epoch,
        "models": of.models,
        "parties": of.parties,
        "dealer": of.dealer,
        "vote": of.vote,
        "classes": of.classes,
        "sessions": opening.sessions,
        "samples": opening.samples,
        "sigma_milli": of.sigma_milli,
    }
    if of.kind is StatementKind.LABELS:
        correct = np.sum([np.frombuffer(share, dtype="<i8") for share in shares], axis=0)
        return EpochStatement(**statement, correct=tuple(correct.tolist()))
    sums = open_statistics(len(of.models), of.classes, shares)
    return EpochStatement(
        **statement,
        joint=() if sums.joint is None else tuple(sums.joint.reshape(-1).tolist()),
        counts=tuple(sums.labels.reshape(-1).tolist()),
        agreement=tuple(sums.agreement.tolist()),
        entropy=tuple(sums.entropy.tolist()),
    )


def drawn(noise_of: NoiseOf, of: DeploymentSet) -> list[int]:
    """Return noise for a set's sums: for counts as integers, for what stands at scale 2^16 drawn at that scale.

    Whole numbers moved to that scale would leave the sums' lower bits as they are, for everybody to read.
    """
    fixed = 0 if of.kind is StatementKind.LABELS else 2 * len(of.models)
    counts = noise_of(of.sigma_milli, 0)(sums_length(of) - fixed)
    return [*counts, *noise_of(of.sigma_milli, SCALE_BITS)(fixed)]


def _fits(of: DeploymentSet | EpochStatement, receipt: Receipt) -> bool:
    """Whether a receipt is of a session that these parties answered on these models."""
    stated = (of.federation, of.parties, of.dealer, of.models, of.vote, of.classes)
    one = receipt
    return stated == (one.federation, one.parties, one.dealer, one.models, one.vote, one.classes) and (
        one.outcome is Outcome.ANSWERED
    )


def stated_epsilon(of: DeploymentSet) -> float:
    """Return the epsilon (at `DELTA`) of what one input, exchanged for another, may change in a set's opened sums, of
    which the number of inputs is public; without noise, infinity.

    One party's noise alone is counted: the others may know their own. Zero-concentrated privacy adds up over the parts.
    """
    if not of.sigma_milli:
        return math.inf
    models, sigma = len(of.models), of.sigma_milli / 1000
    if of.kind is StatementKind.LABELS:
        return epsilon(zcdp(sigma, math.sqrt(models)), DELTA)
    each = sensitivity(models)
    scale = 1 << SCALE_BITS
    parts = [(each.joint, 1), (each.labels, 1), (each.agreement, scale), (each.entropy, scale)]
    return epsilon(sum(zcdp(sigma * unit, size) for size, unit in parts if size), DELTA)


def _commitment(salt: bytes, share: Buffer) -> bytes:
    return hashlib.sha256(b"finode/share\0" + salt + bytes(share)).digest()


class Openings:
    """Leads, joins and signs openings.

    `receipts_of` gives the receipts of a session that the ledger has (several, if somebody made one up under the same
    id), `noise_of` noise of a deviation (thousandths) at a scale (bits).
    """

    def __init__(
        self,
        network: Network,
        identity: Identity,
        store: ContributionStore,
        receipts_of: Callable[[bytes], Sequence[Receipt]],
        filing: Filing,
        noise_of: NoiseOf,
        clock_ms: Callable[[], int],
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._network = network
        self._identity = identity
        self._own = identity.peer_id
        self._store = store
        self._receipts_of = receipts_of
        self._filing = filing
        self._noise_of = noise_of
        self._clock_ms = clock_ms
        self._timeout_s = config.session.answer_timeout_s
        self._log = log
        self._later: dict[bytes, tuple[float, float]] = {}
        self._receipted: dict[bytes, frozenset[bytes]] = {}

    # The first party

    async def tend(self) -> None:
        """Open what may be opened, until cancelled."""
        while True:
            await self.look()
            self._store.prune(self._clock_ms())
            await trio.sleep(LOOK_S)

    async def look(self) -> None:
        """Open, once each, what may be opened now of the sets that this node leads."""
        for of in self._store.sets():
            if of.parties[0] == self._own:
                for begun in self._store.begun(of.key):
                    await self._try(begun.id, begun)
                # One that cannot be finished must not keep the sessions that come after it from being opened.
                await self._try(of.key, self._next(of))

    async def _try(self, key: bytes, opening: Opening | None) -> None:
        not_before, pause_s = self._later.get(key, (0.0, PAUSE_S))
        if opening is None or trio.current_time() < not_before:
            return
        try:
            await self.lead(opening)
            self._later.pop(key, None)
        except FinodeError as error:
            self._log.info("opening put off", epoch=opening.epoch, sessions=len(opening.sessions), why=error.message)
            self._later[key] = (trio.current_time() + pause_s, min(2 * pause_s, LONGEST_PAUSE_S))

    def _next(self, of: DeploymentSet) -> Opening | None:
        """Return an opening of all waiting sessions of past epochs that the rules let open."""
        epoch = (self._clock_ms() - GRACE_MS) // (1000 * of.epoch_s)
        past = [part for part in self._store.waiting(of.key) if part.ended_ms // (1000 * of.epoch_s) < epoch]
        # What waits may wait for weeks: its receipts are looked at until they have come, not every second.
        before = self._receipted.get(of.key, frozenset())
        known = [part for part in past if part.session in before or self._is_known(of, part)]
        self._receipted[of.key] = frozenset(part.session for part in known)
        if not (chosen := largest_opening(known, of.min_queries)):
            return None
        return Opening(
            of=of,
            epoch=epoch - 1,
            sessions=tuple(sorted(part.session for part in chosen)),
            samples=sum(part.count for part in chosen),
        )

    def _is_known(self, of: DeploymentSet, part: Part) -> bool:
        """Whether a receipt of the session is here that says what the dealer will compare: an id may be used twice."""
        counts = [one.count for one in self._receipts_of(part.session) if _fits(of, one)]
        if of.kind is StatementKind.AGREEMENT:
            return part.count in counts
        return any(count >= part.count for count in counts)

    async def lead(self, opening: Opening) -> None:
        """Open one opening with all other parties, have it signed and file the statement.

        Raises `FinodeError`: `PeerRefused` when another party lacks a session, which this node then leaves out.
        """
        of = opening.of
        others = of.parties[1:]
        streams: dict[PeerId, Stream] = {}
        drawn = await self._draw(opening)
        try:
            await together([partial(self._propose, peer, opening, streams) for peer in others])
            salt = secrets.token_bytes(SALT_BYTES)
            shares = {self._own: self._store.give(opening, lambda _: drawn, self._clock_ms())}
            commit = CommitShare(opening=opening.id, commitment=_commitment(salt, shares[self._own]))
            size = 8 * sums_length(of)

            async def exchange(peer: PeerId) -> None:
                await streams[peer].send(commit)
                shares[peer] = bytes(await streams[peer].receive_bulk(size, timeout_s=self._timeout_s))

            await together([partial(exchange, peer) for peer in others])
            ordered = [shares[peer] for peer in of.parties]
            statement = statement_of(opening, ordered)
            body = statement.encode()
            signatures: list[CoSignature] = []
            show = OpenShares(opening=opening.id, salt=salt)

            async def have_signed(peer: PeerId) -> None:
                await streams[peer].send(show)
                await streams[peer].send_bulk(b"".join(ordered))
                signatures.append(await self._signature(streams[peer], statement, body))

            await together([partial(have_signed, peer) for peer in others])
            signatures.append(await self._ask_dealer(statement, body))
            # Last: the others may have found what cannot be true, and a member signs one statement of a session only.
            if why := self._refusal(statement):
                raise PeerRefused(f"these sums are not signed here: {why}", peer=self._own, reason="refused")
            signatures.append(CoSignature(peer=self._own, signature=co_sign(self._identity, body, EpochStatement)))
        finally:
            for stream in streams.values():
                await stream.close()
        signatures.sort(key=lambda one: one.peer)
        await self._filing.file(SignedStatement(body=body, signatures=tuple(signatures)))
        self._store.finish(opening)
        self._log.info(
            "sums opened",
            epoch=opening.epoch,
            sessions=len(opening.sessions),
            samples=opening.samples,
            epsilon=round(stated_epsilon(of), 3) if of.sigma_milli else None,
        )

    async def _draw(self, opening: Opening) -> Sequence[int]:
        """Return the noise for this node's share, drawn off the event loop; nothing where there is none to draw."""
        of = opening.of
        if not of.sigma_milli or self._store.gave(opening):
            return ()
        return await trio.to_thread.run_sync(drawn, self._noise_of, of)

    def _patience_s(self, of: DeploymentSet) -> float:
        """Return how long another party may take until it is ready: it draws its noise first."""
        return self._timeout_s + (DRAW_S * sums_length(of) if of.sigma_milli else 0.0)

    async def _propose(self, peer: PeerId, opening: Opening, streams: dict[PeerId, Stream]) -> None:
        stream = streams[peer] = await self._network.open(peer, PROTOCOL, timeout_s=self._timeout_s)
        await stream.send(ProposeOpening(opening=opening))
        reply = await stream.receive(OpeningReady, Failed, timeout_s=self._patience_s(opening.of))
        if isinstance(reply, Failed):
            raise PeerRefused(f"{peer} does not open these sums: {reply.verdict.detail}", peer=peer, reason="refused")
        if not isinstance(reply, OpeningReady) or reply.opening != opening.id:
            raise RemoteProtocolError(f"{peer} answered about another opening", peer=peer)
        if reply.lacking:
            if not self._store.gave(opening):
                self._store.leave_out(opening.of.key, reply.lacking)
            raise PeerRefused(f"{peer} lacks {len(reply.lacking)} of the sessions", peer=peer, reason="not-here")

    async def _signature(self, stream: Stream, statement: EpochStatement, body: bytes) -> CoSignature:
        reply = await stream.receive(StatementSigned, OpeningReady, Failed, timeout_s=self._timeout_s)
        if isinstance(reply, Failed):
            raise PeerRefused(
                f"{stream.peer} does not sign the sums: {reply.verdict.detail}", peer=stream.peer, reason="refused"
            )
        if isinstance(reply, OpeningReady):
            raise PeerRefused(
                f"{stream.peer} has no receipt of {len(reply.lacking)} of the sessions yet",
                peer=stream.peer,
                reason="not-here",
            )
        if not isinstance(reply, StatementSigned) or reply.statement != statement.id:
            raise RemoteProtocolError(f"{stream.peer} signed another statement", peer=stream.peer)
        check_co_signature(body, EpochStatement, stream.peer, reply.signature)
        return CoSignature(peer=stream.peer, signature=reply.signature)

    async def _ask_dealer(self, statement: EpochStatement, body: bytes) -> CoSignature:
        stream = await self._network.open(statement.dealer, PROTOCOL, timeout_s=self._timeout_s)
        try:
            await stream.send(SignStatement(statement=statement))
            return await self._signature(stream, statement, body)
        finally:
            await stream.close()

    # The other members

    async def join(self, stream: Stream, opening: Opening) -> None:
        """Take part in an opening that the first party of its set leads."""
        of = opening.of
        if stream.peer != of.parties[0] or self._own not in of.parties[1:]:
            raise RemoteProtocolError(f"{stream.peer} proposes an opening that is not its to lead", peer=stream.peer)
        lacking = self._store.lacking(opening)
        if not lacking and not self._store.gave(opening) and (why := self._objection(opening)):
            await self._refuse(stream, opening.id, why)
            return
        drawn = () if lacking else await self._draw(opening)
        await stream.send(OpeningReady(opening=opening.id, lacking=lacking))
        if lacking:
            return
        commit = await stream.receive(CommitShare, timeout_s=self._patience_s(of))
        share = self._store.give(opening, lambda _: drawn, self._clock_ms())
        await stream.send_bulk(share)
        shown = await stream.receive(OpenShares, timeout_s=self._timeout_s)
        if commit.opening != opening.id or shown.opening != opening.id:
            raise RemoteProtocolError("the first party speaks of another opening", peer=stream.peer)
        size = 8 * sums_length(of)
        together_shown = await stream.receive_bulk(size * len(of.parties), timeout_s=self._timeout_s)
        shares = [bytes(together_shown[i * size : (i + 1) * size]) for i in range(len(of.parties))]
        if shares[of.parties.index(self._own)] != share or _commitment(shown.salt, shares[0]) != commit.commitment:
            raise RemoteProtocolError("the first party shows other shares than were given", peer=stream.peer)
        await self._sign(stream, statement_of(opening, shares))

    def _objection(self, opening: Opening) -> str:
        """Return which rule the opening of sessions that are all here would break."""
        of, parts = opening.of, self._store.parts(opening)
        if sum(part.count for part in parts) != opening.samples:
            return "the number of inputs is not what this party counted"
        if not may_open(parts, of.min_queries):
            return "too few inputs or sessions, or one querier asked more than half of them"
        over = (self._clock_ms() + CLOCK_SKEW_MS) // (1000 * of.epoch_s)
        # A session has its own end at each party: one at the turn of an epoch may be a moment late here.
        ended = [(part.ended_ms - CLOCK_SKEW_MS) // (1000 * of.epoch_s) for part in parts]
        if opening.epoch >= over or any(epoch > opening.epoch for epoch in ended):
            return "its epoch is not over"
        return ""

    async def vouch(self, stream: Stream, statement: EpochStatement) -> None:
        """Sign, as the dealer, what the first party of the statement opened, if the receipts say the same."""
        if stream.peer != statement.parties[0] or self._own != statement.dealer:
            raise RemoteProtocolError(f"{stream.peer} asks for a signature that is not ours to give", peer=stream.peer)
        known = {session: self._receipts_of(session) for session in statement.sessions}
        if lacking := tuple(session for session, receipts in known.items() if not receipts):
            await stream.send(OpeningReady(opening=statement.id, lacking=lacking))
            return
        fitting = [next((one for one in receipts if _fits(statement, one)), None) for receipts in known.values()]
        found = [receipt for receipt in fitting if receipt is not None]
        if len(found) < len(fitting):
            await self._refuse(stream, statement.id, "a session was run by others, or on other models")
            return
        count = sum(one.count for one in found)
        exact = statement.kind is StatementKind.AGREEMENT
        if count < statement.samples or (exact and count != statement.samples):
            await self._refuse(stream, statement.id, "the receipts state another number of inputs")
            return
        await self._sign(stream, statement)

    async def _sign(self, stream: Stream, statement: EpochStatement) -> None:
        if why := self._refusal(statement):
            await self._refuse(stream, statement.id, why)
            return
        signature = co_sign(self._identity, statement.encode(), EpochStatement)
        await stream.send(StatementSigned(statement=statement.id, signature=signature))

    def _refusal(self, statement: EpochStatement) -> str:
        """Return why this node does not sign a statement; "" once it is written down that it signs this one."""
        if why := contradiction_in(statement):
            return why
        return "" if self._store.vow(statement) else "this node signed other sums of one of its sessions"

    async def _refuse(self, stream: Stream, subject: bytes, why: str) -> None:
        self._log.warning("epoch statement refused", peer=stream.peer, why=why)
        await stream.send(
            Failed(subject=subject, verdict=Verdict(culprit=stream.peer, round=-1, fault=Fault.PROTOCOL, detail=why))
        )
