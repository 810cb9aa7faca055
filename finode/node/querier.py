"""The querier's role: a committee, shares of the input to its parties, shares of the output back, the answer.

    negotiate   or reuse a sealed committee of the same request
    deploy      owners hand out what parties lack, parties open masked weights; once per committee
    session     with a bundle that lies ready, or one that is dealt now, each party gets its share of the input; the
                output shares add up to the answer

More inputs than one session may have are asked in several, one after the other (batches.py). A session that fails names
a culprit; the querier drops that committee and runs again without the culprit, with new shares and a new bundle, until
the answer or its deadline.
"""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import trio
from structlog.typing import FilteringBoundLogger

from finode.committee.agreement import Agreement
from finode.committee.book import QuerierCache
from finode.committee.policy import Candidate, Request
from finode.committee.sealed import SealedCommittee
from finode.config import Config, Role
from finode.errors import (
    CommitteeError,
    FinodeError,
    InputError,
    RemoteError,
    RemoteProtocolError,
    SessionAborted,
    SessionCancelled,
    UnknownService,
)
from finode.identity import PeerId
from finode.net.interface import Network
from finode.node.answers import Answered, Clock, answer_of, in_the_middle, sessions_of
from finode.node.augmenting import with_copies
from finode.node.batches import SharedInput, check_inputs, filled, is_row_wise, session_batch
from finode.node.choices import COMPUTING, answer_spec, candidates, in_good_standing, wanted_of
from finode.node.contribution import Contribution
from finode.node.cosigning import Cosigning
from finode.node.interface import (
    ProgressCallback,
    QueryAnswer,
    QueryProgress,
    QueryRequest,
)
from finode.node.members import GOODBYE_TIMEOUT_S, Members, Story
from finode.node.negotiator import agree, dissolve, now_ms
from finode.node.sessions import Session, SessionTable
from finode.node.supply import Supply, Ticket
from finode.node.tasks import together
from finode.node.verdicts import BLAMELESS, WORDS, VerdictReached
from finode.smpc import sharing
from finode.wire.committee import Dissolve
from finode.wire.directory import ServiceSpec
from finode.wire.preprocessing import Dealt
from finode.wire.shares import (
    SESSION_ID_BYTES,
    Fault,
    HandOut,
    Meter,
    Phase,
    Prepare,
    Prepared,
    StartSession,
    Verdict,
)
from finode.wire.signed import Signed

FAULT_POINTS = 20.0
"""What breaking the protocol costs a peer's standing here: three times in a row and it is not chosen any more."""
MISHAP_POINTS = 4.0
"""What ending a session by being lost, late or broken costs it: that happens to the honest."""
DELIBERATE = frozenset({Fault.PROTOCOL, Fault.WRONG_DIGEST})
GONE = frozenset({Fault.PEER_LOST, Fault.TIMEOUT, Fault.SHUTTING_DOWN})
"""Faults after which a peer is not asked as an owner either; any other leaves its models in the ensemble."""
BUSY_PAUSE_S = 0.2
BUSY_PAUSE_AT_MOST_S = 2.0
MAX_ATTEMPTS = 8
"""Committees tried for one query, whatever time is left: the fault may be ours."""


class QuerierRole:
    """Runs this node's own queries."""

    def __init__(
        self,
        network: Network,
        organization: str,
        sessions: SessionTable,
        own_candidate: Callable[[], Candidate | None],
        cosigning: Cosigning,
        contribution: Contribution,
        nursery: trio.Nursery,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._network = network
        self._organization = organization
        self._sessions = sessions
        self._own_candidate = own_candidate
        self._cosigning = cosigning
        self._contribution = contribution
        self._config = config
        self._log = log
        self._members = Members(network, config)
        self._cache = QuerierCache()
        self._nursery = nursery
        self._supplies: dict[bytes, Supply] = {}
        self._negotiating = trio.Lock()
        self._deploying: dict[bytes, trio.Lock] = {}
        self._using: Counter[bytes] = Counter()
        self._scopes: dict[bytes, trio.CancelScope] = {}

    async def query(self, request: QueryRequest, progress: ProgressCallback) -> QueryAnswer:
        """Answer a query; see `NodeService.query`."""
        session = secrets.token_bytes(SESSION_ID_BYTES)
        deadline_s = request.deadline_s or self._config.querier.deadline_s
        answers: list[QueryAnswer] = []
        reasons: list[str] = []
        with trio.CancelScope() as scope, trio.move_on_after(deadline_s) as deadline:
            self._scopes[session] = scope
            try:
                place = self._sessions.enter(
                    session, b"", request.service, Role.QUERIER, self._network.peer_id, len(request.inputs)
                )
                with place as entry:
                    answers.append(await self._answer(request, entry, progress, deadline_s, reasons))
            finally:
                del self._scopes[session]
        if answers:
            return answers[0]
        if deadline.cancelled_caught:
            why = f": {reasons[-1]}" if reasons else ""
            raise SessionAborted(
                f"no answer within {deadline_s:g} s{why}", hint="ask with a longer deadline, or see `finode ps`"
            )
        raise SessionCancelled("the query was cancelled")

    def cancel(self, session: bytes) -> bool:
        """Cancel a query that runs; False if there is none of that id."""
        if (scope := self._scopes.get(session)) is None:
            return False
        scope.cancel()
        return True

    # Sessions and their attempts

    async def _answer(
        self,
        request: QueryRequest,
        entry: Session,
        progress: ProgressCallback,
        deadline_s: float,
        reasons: list[str],
    ) -> QueryAnswer:
        """Ask about all inputs, in as many sessions as they need, and put the answer together."""
        clock = Clock()
        check_inputs(request.inputs, request.vote, self.spec(request.service), self._config.querier.max_batch)
        results: list[Answered] = []
        left = request.inputs
        while len(left):
            part = replace(request, inputs=left[: self._config.querier.max_batch])
            try:
                results.append(await self._attempts(part, entry, progress, clock, deadline_s, reasons, bool(results)))
            except FinodeError as error:
                if not results:
                    raise
                raise in_the_middle(error, results, len(request.inputs)) from error
            left = left[len(results[-1].output.labels) :]
        self._contribution.asked(entry.id, sessions_of(results))
        return answer_of(
            request.service,
            entry.id,
            results,
            clock,
            self._network.organization_of,
        )

    async def _attempts(
        self,
        request: QueryRequest,
        entry: Session,
        progress: ProgressCallback,
        clock: Clock,
        deadline_s: float,
        reasons: list[str],
        goes_on: bool,
    ) -> Answered:
        without: dict[str, str] = {}
        attempt, pause_s = 1, BUSY_PAUSE_S
        while True:
            wanted = wanted_of(request, self._config, self._network.peer_id, self._organization, frozenset(without))
            try:
                # A session id is used once: only the query's first session has the query's.
                session = secrets.token_bytes(SESSION_ID_BYTES) if goes_on or reasons else entry.id
                result = await self._attempt(request, wanted, without, entry, session, progress, clock, deadline_s)
                return replace(result, attempts=attempt)
            except VerdictReached as error:
                verdict = error.verdict
                reasons.append(error.message)
                self._log.warning(
                    "attempt failed",
                    session=entry.id.hex(),
                    culprit=verdict.culprit,
                    fault=verdict.fault.value,
                    round=verdict.round,
                    detail=verdict.detail,
                )
                hopeless = verdict.culprit in ("", self._network.peer_id) and verdict.fault is not Fault.NOT_SEALED
                if verdict.fault is Fault.BUSY:
                    # All is well but for the moment: the same committee again, until the deadline.
                    await trio.sleep(pause_s)
                    pause_s = min(2 * pause_s, BUSY_PAUSE_AT_MOST_S)
                    continue
                if hopeless or attempt == MAX_ATTEMPTS:
                    raise
                without |= self._blame(verdict)
                attempt += 1
            except CommitteeError as error:
                if not reasons:
                    raise
                why = f"{error.message}; before that: {'; '.join(reasons)}"
                raise type(error)(why, hint=error.hint) from error

    def _blame(self, verdict: Verdict) -> dict[str, str]:
        """Return whom the next attempt goes without, and why. A member that forgot the committee is only asked anew."""
        if verdict.fault in (Fault.NOT_SEALED, Fault.QUOTA_USED):
            return {}
        culprit = PeerId(verdict.culprit)
        self._cache.drop_member(culprit)
        if verdict.fault not in BLAMELESS:
            points = FAULT_POINTS if verdict.fault in DELIBERATE else MISHAP_POINTS
            self._network.fault(culprit, points, f"ended a session: {verdict.fault}")
        why = f"{WORDS[verdict.fault]} in an earlier attempt"
        return {culprit if verdict.fault in GONE | DELIBERATE else f"{COMPUTING}{culprit}": why}

    def spec(self, service: str) -> ServiceSpec:
        """Return a service's spec as most records state it; raise `UnknownService`."""
        stated = [spec for record in self._network.records().values() if (spec := record.service(service)) is not None]
        if stated:
            counts = Counter(spec.digest() for spec in stated)
            return min(stated, key=lambda spec: (-counts[spec.digest()], spec.digest()))
        raise UnknownService(
            f"nobody in the federation offers the service {service!r}", hint="`finode services` lists those offered"
        )

    async def _attempt(
        self,
        request: QueryRequest,
        wanted: Request,
        without: Mapping[str, str],
        entry: Session,
        session: bytes,
        progress: ProgressCallback,
        clock: Clock,
        deadline_s: float,
    ) -> Answered:
        async def tell(phase: Phase, done: int = 0, total: int = 0, detail: str = "") -> None:
            entry.phase = phase
            if phase is Phase.ROUNDS:
                entry.round = done
            await progress(
                QueryProgress(session=entry.id.hex(), phase=phase.value, done=done, total=total, detail=detail)
            )

        await tell(Phase.COMMITTEE)
        began = time.monotonic()
        async with self._negotiating:  # so that equal queries at the same time share one committee
            batch = session_batch(request.vote, len(request.inputs), wanted.max_batch, wanted.copies)
            agreement = await self._agreement(wanted, without, batch, clock, deadline_s)
        committee = agreement.committee
        entry.committee = committee.id
        clock.negotiation_s += time.monotonic() - began
        began = time.monotonic()
        await tell(Phase.DEPLOYMENT, detail=committee.id.hex()[:12])
        try:
            with self._use(committee):
                # Parties prepare one attempt after the other, all in the same order.
                async with self._deploying.setdefault(committee.id, trio.Lock()):
                    supply = await self._deploy(committee)
                clock.deployment_s += time.monotonic() - began
                return await self._session(agreement, supply, session, request, tell, clock)
        except VerdictReached as error:
            await self._part(committee, error.verdict)
            raise

    async def _agreement(
        self, wanted: Request, without: Mapping[str, str], batch: int, clock: Clock, deadline_s: float
    ) -> Agreement:
        known = candidates(self._network, self._own_candidate(), wanted.exclude)
        cached = self._cache.take(wanted, batch, now_ms())
        if cached is not None:
            if in_good_standing(self._network, cached.committee.terms) and not cached.outdated(known, wanted):
                return cached
            self._cache.drop(cached.committee.id)
            self._nursery.start_soon(self._give_up, cached.committee, "another committee takes its place")
        left_ms = round((deadline_s - (time.monotonic() - clock.began)) * 1000)
        agreement = await agree(
            self._network,
            wanted,
            known,
            lost=without,
            deadline_ms=now_ms() + max(left_ms, 1),
            answer_timeout_s=self._config.session.answer_timeout_s,
            log=self._log,
        )
        self._cache.put(wanted, agreement, batch)
        return agreement

    async def _part(self, committee: SealedCommittee, verdict: Verdict) -> None:
        """Give up a committee in which a session failed, unless it is only busy or other queries still use it."""
        if verdict.fault is Fault.BUSY:
            return
        self._cache.drop(committee.id)
        await self._give_up(committee)

    @contextmanager
    def _use(self, committee: SealedCommittee) -> Iterator[None]:
        """Count a query that uses a committee; the last one leaves nothing behind of one that is not used again."""
        self._using[committee.id] += 1
        try:
            yield
        finally:
            self._using[committee.id] -= 1
            if committee.id in self._supplies and committee.id not in self._cache:
                self._nursery.start_soon(self._give_up, committee)

    async def _give_up(self, committee: SealedCommittee, reason: str = "a session failed") -> None:
        """Dissolve a committee that no query will use any more, unless one still does."""
        if self._using[committee.id]:
            return
        del self._using[committee.id]
        self._deploying.pop(committee.id, None)
        if (supply := self._supplies.pop(committee.id, None)) is not None:
            supply.retire()
        message = Dissolve(committee=committee.id, reason=reason)
        with trio.move_on_after(GOODBYE_TIMEOUT_S):
            await together([partial(dissolve, self._network, peer, message) for peer in committee.terms.members()])

    async def _deploy(self, committee: SealedCommittee) -> Supply:
        if (known := self._supplies.get(committee.id)) is not None:
            return known
        terms = committee.terms
        story = Story(self._network.peer_id, frozenset(terms.members()))
        run = secrets.token_bytes(SESSION_ID_BYTES)
        calls: list[Callable[[], Awaitable[Prepared]]] = [
            partial(self._members.order, owner, HandOut(committee=committee.id), story) for owner in terms.owners()
        ]
        calls += [
            partial(self._members.order, party, Prepare(committee=committee.id, run=run), story)
            for party in terms.parties
        ]
        try:
            replies = await together(calls)
        except RemoteError as error:
            raise VerdictReached(story.because(error)) from error
        max_batch = min(terms.max_batch, *(reply.max_batch for reply in replies[len(terms.owners()) :]))
        if not max_batch:
            # A party always takes one input at least; one that says otherwise only keeps the query from its answer.
            none = [reply.max_batch for reply in replies[len(terms.owners()) :]].index(0)
            verdict = Verdict(culprit=terms.parties[none], round=-1, fault=Fault.PROTOCOL, detail="it takes no inputs")
            raise VerdictReached(verdict)

        def on_lost() -> None:
            # Without its dealer a committee answers nothing more: the next query asks for another one.
            self._cache.drop(committee.id)
            if self._supplies.get(committee.id) is supply:
                self._nursery.start_soon(self._give_up, committee)

        supply = Supply(self._network, terms, max_batch, self._nursery, self._config, on_lost)
        self._supplies[committee.id] = supply
        return supply

    async def _session(
        self,
        agreement: Agreement,
        supply: Supply,
        session: bytes,
        request: QueryRequest,
        tell: Callable[..., Awaitable[None]],
        clock: Clock,
    ) -> Answered:
        """Ask about as many of the inputs as the parties have the memory for."""
        committee = agreement.committee
        copies = committee.terms.copies
        count = min(len(request.inputs), supply.max_batch // (1 + copies))
        if count < len(request.inputs) and not is_row_wise(request.vote):
            raise InputError(
                f"{len(request.inputs)} inputs in one query: a {request.vote} vote looks at all of them together, and "
                f"the parties have the memory for {count}",
                hint="ask in smaller batches, or have the parties raise [party] session_memory_mb",
            )
        batch = session_batch(request.vote, count, supply.max_batch, copies)
        await tell(Phase.PREPROCESSING)
        began = time.monotonic()
        ticket = await supply.take(batch)
        clock.offline_s += time.monotonic() - began
        order = self._cosigning.order(committee, session, ticket.serial, count)
        try:
            with supply.in_use(), self._cosigning.asking(committee, order, session):
                return await self._run(agreement, supply, ticket, order, session, request.inputs[:count], tell, clock)
        except BaseException:
            supply.give_up(ticket)
            raise

    async def _run(
        self,
        agreement: Agreement,
        supply: Supply,
        ticket: Ticket,
        order: Signed,
        session: bytes,
        inputs: npt.NDArray[np.float64],
        tell: Callable[..., Awaitable[None]],
        clock: Clock,
    ) -> Answered:
        committee = agreement.committee
        terms, batch = committee.terms, ticket.batch
        began = time.monotonic()
        outputs: dict[int, bytearray] = {}
        meters: dict[int, Meter] = {}
        dealt: list[Dealt] = [] if ticket.ready is None else [ticket.ready]
        spec = answer_spec(terms, batch)
        output_bytes = sharing.output_bytes(spec)
        rows = with_copies(
            filled(inputs, spec.answers),
            terms.copies,
            agreement.spec.input,
            self._config.querier,
            np.random.default_rng(secrets.randbits(128)),
        )
        shared = SharedInput(rows, len(terms.parties), terms.fractional_bits)
        story = Story(self._network.peer_id, frozenset(terms.members()))

        async def deal() -> None:
            try:
                dealt.append(await supply.deal(ticket))
            except VerdictReached as error:
                story.because(error)
                raise

        async def party(index: int) -> None:
            start = StartSession(
                session=session,
                committee=committee.id,
                serial=ticket.serial,
                batch=batch,
                input_bytes=sharing.input_bytes(terms.input_shape, batch),
                order=order,
            )
            outputs[index], meters[index] = await self._members.compute(
                terms.parties[index], start, partial(shared.piece, index), output_bytes, tell, story
            )

        calls: list[Callable[[], Awaitable[None]]] = [] if ticket.ready is not None else [deal]
        calls += [partial(party, index) for index in range(len(terms.parties))]
        try:
            await together(calls)
        except RemoteError as error:
            raise VerdictReached(story.because(error)) from error
        total_s = time.monotonic() - began
        offline_s = min(total_s, max(meter.offline_s for meter in meters.values()))
        clock.offline_s += offline_s
        clock.online_s += total_s - offline_s
        try:
            shares = [outputs[index] for index in range(len(terms.parties))]
            output = sharing.reconstruct(spec, shares, len(inputs))
        except RemoteProtocolError as error:
            culprit = terms.parties[int(error.peer)] if error.peer.isdigit() else ""
            verdict = Verdict(culprit=culprit, round=-1, fault=Fault.PROTOCOL, detail=error.message)
            raise VerdictReached(verdict) from error
        return Answered(
            session,
            agreement,
            output,
            tuple(meters[index] for index in sorted(meters)),
            dealt[0],
            ticket.at_once,
        )
