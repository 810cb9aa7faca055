"""Labels that come later: the querier shares them, the parties count on shares how often each model was right.

Nobody sees a label, a vote, or the counts of one session: they are added to the sums of an epoch (openings.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio
from structlog.typing import FilteringBoundLogger

from finode.config import Config
from finode.errors import InputError, PeerRefused, PeerTimeout, RemoteProtocolError
from finode.identity import PeerId
from finode.ledger.opening import Part
from finode.net.interface import Network, Stream
from finode.node.ballots import BallotBox, Ballots
from finode.node.channel import Buffer, Envelope
from finode.node.contributions import ContributionStore
from finode.node.driver import feedback_request
from finode.node.interface import FeedbackView
from finode.node.members import GOODBYE_TIMEOUT_S
from finode.node.pool import WorkerPool, WorkerProcess
from finode.node.tasks import together
from finode.smpc.labels import UNLABELLED, label_bytes, share_labels
from finode.wire import canonical
from finode.wire.committee import Terms
from finode.wire.contribution import (
    PROTOCOL,
    BallotsKept,
    DeploymentSet,
    GiveLabels,
    JoinFeedback,
    LabelsCounted,
)
from finode.wire.receipts import ModelUse, StatementKind
from finode.wire.shares import Failed

REMEMBERED = 4096
"""Sessions of its own for which a querier can give labels."""


def model_uses(terms: Terms) -> tuple[ModelUse, ...]:
    """Return the models of the terms as records name them."""
    return tuple(
        ModelUse(version=model.version, owner=model.owner, deployment=terms.deployment_id(model))
        for model in terms.models
    )


def set_of(terms: Terms, kind: StatementKind) -> DeploymentSet:
    """Return the set to whose sums a session of these terms belongs."""
    return DeploymentSet(
        federation=terms.federation,
        kind=kind,
        models=model_uses(terms),
        parties=terms.parties,
        dealer=terms.dealer,
        vote=terms.vote,
        classes=terms.classes,
        epoch_s=terms.rewards.epoch_s,
        min_queries=terms.rewards.min_queries,
        sigma_milli=terms.rewards.sigma_milli,
    )


@dataclass(frozen=True, slots=True)
class AskedSession:
    """One session that this node asked: which query it was part of, and how many of its inputs."""

    id: bytes
    terms: Terms
    count: int


class AskedSessions:
    """What a querier remembers of its queries, by their ids: the sessions that answered them, in their order."""

    def __init__(self) -> None:
        self._asked: OrderedDict[bytes, tuple[AskedSession, ...]] = OrderedDict()

    def put(self, query: bytes, sessions: tuple[AskedSession, ...]) -> None:
        self._asked[query] = sessions
        while len(self._asked) > REMEMBERED:
            self._asked.popitem(last=False)

    def of(self, prefix: str) -> tuple[bytes, tuple[AskedSession, ...]]:
        """Return the query whose id begins with `prefix`, or one session of a query, with the sessions to be labelled.

        The first session of a query may have the query's id: then the query is meant. Raises `InputError` for none or
        several.
        """
        begin = prefix.lower()
        found = {query: sessions for query, sessions in self._asked.items() if query.hex().startswith(begin)}
        if not found:
            every = (asked for sessions in self._asked.values() for asked in sessions)
            found = {asked.id: (asked,) for asked in every if asked.id.hex().startswith(begin)}
        if len(found) != 1 or not prefix:
            raise InputError(
                f"{len(found) or 'none'} of the sessions that this node asked and remembers begin with {prefix!r}",
                hint="give labels at the node that asked, before it restarts; `finode query` prints the session",
            )
        return next(iter(found.items()))


class FeedbackGiver:
    """The querier's side."""

    def __init__(self, network: Network, asked: AskedSessions, config: Config) -> None:
        self._network = network
        self._asked = asked
        self._timeout_s = config.session.answer_timeout_s
        self._rounds_s = 4 * config.session.round_timeout_s

    async def give(self, session: str, labels: tuple[int, ...]) -> FeedbackView:
        """Share the labels of a query with the parties of its sessions, -1 where there is none.

        Raises `InputError` for labels that do not fit, `PeerRefused` when a party keeps the votes no more.
        """
        query, sessions = self._asked.of(session)
        count = sum(asked.count for asked in sessions)
        if len(labels) != count:
            raise InputError(f"{len(labels)} labels for {count} inputs", hint="give - for an input without a label")
        if all(label == UNLABELLED for label in labels):
            raise InputError("none of the inputs has a label")
        left, shared = labels, []
        for asked in sessions:
            mine, left = left[: asked.count], left[asked.count :]
            shared.append((asked, mine, share_labels(mine, asked.terms.classes, len(asked.terms.parties))))
        for asked, mine, pieces in shared:
            if any(label != UNLABELLED for label in mine):
                await self._give(asked, sum(label != UNLABELLED for label in mine), pieces)
        labelled = sum(label != UNLABELLED for label in labels)
        return FeedbackView(session=query.hex(), count=count, labelled=labelled)

    async def _give(self, asked: AskedSession, labelled: int, pieces: list[bytes]) -> None:
        streams: dict[PeerId, Stream] = {}
        ask = GiveLabels(session=asked.id, count=asked.count, labelled=labelled)

        async def offer(peer: PeerId) -> None:
            stream = streams[peer] = await self._network.open(peer, PROTOCOL, timeout_s=self._timeout_s)
            await stream.send(ask)
            reply = await stream.receive(BallotsKept, timeout_s=self._timeout_s)
            if not reply.kept:
                raise PeerRefused(
                    f"{peer} does not keep the votes of this session (any more)",
                    peer=peer,
                    reason="not-kept",
                    hint="labels are taken once per session, and within the party's feedback_window_s",
                )

        async def count(peer: PeerId, piece: bytes) -> None:
            await streams[peer].send_raw(piece)
            reply = await streams[peer].receive(LabelsCounted, Failed, timeout_s=self._rounds_s)
            if isinstance(reply, Failed):
                raise PeerRefused(
                    f"{peer} could not count the labels: {reply.verdict.detail}", peer=peer, reason="failed"
                )

        try:
            await together([partial(offer, peer) for peer in asked.terms.parties])
            await together([partial(count, *each) for each in zip(asked.terms.parties, pieces, strict=True)])
        finally:
            for stream in streams.values():
                await stream.close()


class FeedbackTaker:
    """A party's side."""

    def __init__(
        self,
        network: Network,
        pool: WorkerPool,
        box: BallotBox,
        store: ContributionStore,
        clock_ms: Callable[[], int],
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._network = network
        self._own = network.peer_id
        self._pool = pool
        self._box = box
        self._store = store
        self._clock_ms = clock_ms
        self._answer_s = config.session.answer_timeout_s
        self._round_s = config.session.round_timeout_s
        self._log = log
        self._counting: dict[bytes, Terms] = {}
        self._joined: dict[tuple[bytes, PeerId], Stream] = {}
        self._changed = trio.Event()

    async def take(self, stream: Stream, message: GiveLabels) -> None:
        """Serve a querier that has labels for a session of its own."""
        kept = self._box.keeps(message.session, stream.peer)
        fits = kept is not None and kept.count == message.count
        await stream.send(BallotsKept(session=message.session, kept=fits))
        if kept is None or not fits:
            return
        size = label_bytes(message.count)
        share = await stream.receive_raw(size, timeout_s=self._answer_s)
        if len(share) != size:
            raise RemoteProtocolError(
                f"{stream.peer} sent {len(share)} bytes of labels, {size} are due", peer=stream.peer
            )
        ballots = self._box.take(message.session, stream.peer)
        self._counting[message.session] = ballots.terms
        try:
            sums = await self._count(ballots, share)
        finally:
            del self._counting[message.session]
        part = Part(session=message.session, querier=stream.peer, count=message.labelled, ended_ms=self._clock_ms())
        self._store.add(set_of(ballots.terms, StatementKind.LABELS), part, sums)
        self._log.info("labels counted", session=message.session.hex(), labelled=message.labelled)
        await stream.send(LabelsCounted(session=message.session))

    async def join(self, stream: Stream, message: JoinFeedback) -> None:
        """Lend a lower party's stream to the counting of a session, until that is over."""
        with trio.move_on_after(self._answer_s):
            while message.session not in self._counting:
                await self._changed_soon()
        terms = self._counting.get(message.session)
        own = terms.parties.index(self._own) if terms is not None else 0
        if terms is None or stream.peer not in terms.parties[:own]:
            raise RemoteProtocolError(f"{stream.peer} joins a counting that is not its to join", peer=stream.peer)
        key = (message.session, stream.peer)
        self._joined[key] = stream
        self._wake()
        try:
            while message.session in self._counting:
                await self._changed_soon()
        finally:
            self._joined.pop(key, None)

    async def _changed_soon(self) -> None:
        with trio.move_on_after(0.2):
            await self._changed.wait()

    def _wake(self) -> None:
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def _count(self, ballots: Ballots, label_share: Buffer) -> bytes:
        self._wake()
        parties = ballots.terms.parties
        own = parties.index(self._own)
        streams: dict[int, Stream] = {}

        async def reach(index: int) -> None:
            peer = parties[index]
            if index > own:
                stream = streams[index] = await self._network.open(peer, PROTOCOL, timeout_s=self._answer_s)
                await stream.send(JoinFeedback(session=ballots.session))
                return
            with trio.move_on_after(self._round_s):
                while (ballots.session, peer) not in self._joined:
                    await self._changed_soon()
            if (ballots.session, peer) not in self._joined:
                raise PeerTimeout(f"{peer} did not join the counting of labels", peer=peer)
            streams[index] = self._joined[ballots.session, peer]

        try:
            await together([partial(reach, index) for index in range(len(parties)) if index != own])
            async with self._pool.acquire() as worker:
                return await self._run(worker, ballots, label_share, streams)
        finally:
            for index, stream in streams.items():
                if index > own:
                    await stream.close()

    async def _run(
        self, worker: WorkerProcess, ballots: Ballots, label_share: Buffer, streams: dict[int, Stream]
    ) -> bytes:
        run = b"feedback" + ballots.session
        others = sorted(streams)
        header, parts = feedback_request(
            ballots.terms.engine,
            canonical.encode(ballots.program),
            ballots.terms.parties.index(self._own),
            ballots.count,
            ballots.ballots,
            label_share,
            ballots.zero_keys,
        )
        try:
            return await self._exchange(
                worker, run, others, streams, await worker.request({"run": run, **header}, parts)
            )
        except BaseException:
            with trio.CancelScope(shield=True), trio.move_on_after(GOODBYE_TIMEOUT_S):
                await worker.post({"kind": "drop", "run": run})  # else it would lie there for as long as the worker
            raise

    async def _exchange(
        self, worker: WorkerProcess, run: bytes, others: list[int], streams: dict[int, Stream], reply: Envelope
    ) -> bytes:
        while reply.header["state"] == "exchange":
            frames = dict(zip(reply.header["parties"], reply.parts, strict=True))
            expected: int = reply.header["expected_bytes"]
            theirs: dict[int, Buffer] = {}

            async def swap(index: int, frames: dict[int, Buffer], expected: int, theirs: dict[int, Buffer]) -> None:
                await streams[index].send_raw(frames[index])
                theirs[index] = await streams[index].receive_raw(expected, timeout_s=self._round_s)

            await together([partial(swap, index, frames, expected, theirs) for index in others])
            reply = await worker.request(
                {"kind": "resume", "run": run, "parties": others}, [theirs[index] for index in others]
            )
        return bytes(reply.parts[0])
