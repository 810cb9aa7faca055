"""How models contributed: what a node does for it besides answering, and who serves /finode/contribution/1.

follow      party: the rounds after an answer; its shares of the sums go into the store, the votes into the box
tend        first party of a set: the openings of its epochs (openings.py)
serve       all members: openings to join or to sign, and labels for past sessions (feedback.py)
"""

from __future__ import annotations

from fractions import Fraction

import trio
from structlog.typing import FilteringBoundLogger

from finode.config import Config
from finode.errors import FinodeError, PeerUnreachable
from finode.identity import Identity
from finode.ledger.opening import Part
from finode.net.interface import Network, Stream
from finode.node.ballots import BallotBox, Ballots
from finode.node.contributions import ContributionStore, Noise
from finode.node.feedback import AskedSession, AskedSessions, FeedbackGiver, FeedbackTaker, set_of
from finode.node.filing import Filing
from finode.node.interface import FeedbackView
from finode.node.lanes import LaneSet
from finode.node.negotiator import now_ms
from finode.node.openings import Openings
from finode.node.pool import WorkerPool
from finode.node.seat import PartySeat, SeatRun
from finode.node.verdicts import verdict_of
from finode.smpc.noise import DiscreteGaussian
from finode.wire.contribution import GiveLabels, JoinFeedback, ProposeOpening, SignStatement
from finode.wire.receipts import StatementKind


def noise_of(sigma_milli: int, scale_bits: int) -> Noise:
    """Return a source of discrete Gaussian noise whose deviation is `sigma_milli` / 1000 at scale 2^`scale_bits`;
    zeros for 0."""
    if not sigma_milli:
        return lambda length: [0] * length
    return DiscreteGaussian((Fraction(sigma_milli, 1000) * (1 << scale_bits)) ** 2).vector


class Contribution:
    """This node's part in it. Nothing here costs anyone an answer: what fails is logged, and the owners of sessions
    whose sums are never opened are paid equally."""

    def __init__(
        self,
        network: Network,
        identity: Identity,
        pool: WorkerPool,
        store: ContributionStore,
        filing: Filing,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._own = identity.peer_id
        self._store = store
        self._box = BallotBox(config.party.feedback_window_s, trio.current_time)
        self._openings = Openings(network, identity, store, filing.receipts_of, filing, noise_of, now_ms, config, log)
        self._taker = FeedbackTaker(network, pool, self._box, store, now_ms, config, log)
        self._asked = AskedSessions()
        self._giver = FeedbackGiver(network, self._asked, config)
        self._following: dict[bytes, trio.Event] = {}
        self._timeout_s = config.session.answer_timeout_s
        self._log = log

    @property
    def ballots_kept(self) -> int:
        """How many sessions' votes are kept here for labels."""
        return len(self._box)

    async def tend(self) -> None:
        """Open the sums of epochs that are over, until cancelled."""
        await self._openings.tend()

    async def serve(self, stream: Stream) -> None:
        """Serve one stream of another member."""
        first = await stream.receive(ProposeOpening, SignStatement, GiveLabels, JoinFeedback, timeout_s=self._timeout_s)
        try:
            match first:
                case ProposeOpening():
                    await self._openings.join(stream, first.opening)
                case SignStatement():
                    await self._openings.vouch(stream, first.statement)
                case GiveLabels():
                    await self._followed(first.session)
                    await self._taker.take(stream, first)
                case JoinFeedback():
                    await self._taker.join(stream, first)
        except PeerUnreachable:
            return  # it gave up: another member lacked something, or failed
        finally:
            await stream.close()

    async def _followed(self, session: bytes) -> None:
        """Wait for what follows an answer: labels may come sooner than its votes are kept.

        The querier waits as long as this for an answer, so half of it is for the way there and back.
        """
        if (ended := self._following.get(session)) is not None:
            with trio.move_on_after(self._timeout_s / 2):
                await ended.wait()

    def asked(self, query: bytes, sessions: tuple[AskedSession, ...]) -> None:
        """Remember, as the querier, which sessions answered a query, so that labels can be given for it."""
        self._asked.put(query, sessions)

    async def give_labels(self, session: str, labels: tuple[int, ...]) -> FeedbackView:
        """Share labels of a query of this node. See `FeedbackGiver.give`."""
        return await self._giver.give(session, labels)

    async def follow(self, seat: PartySeat, lanes: LaneSet, session: bytes, run: SeatRun) -> None:
        """Move what follows an answer to its end, keep its shares, and leave the session's lanes."""
        terms = seat.terms
        ended_ms = now_ms()
        ended = self._following[session] = trio.Event()
        try:
            with trio.fail_after(terms.session_timeout_s), run.driver.worker.busy():
                outcome = await run.driver.rest()
            sums, ballots = map(bytes, outcome.parts)
            part = Part(session=session, querier=terms.querier, count=run.count, ended_ms=ended_ms)
            self._store.add(set_of(terms, StatementKind.AGREEMENT), part, sums)
            self._box.put(Ballots(session, terms, run.program, run.count, ballots, run.zero_keys))
        except FinodeError as error:
            self._log.info("statistics failed", session=session.hex(), why=error.message)
            await lanes.tell(session, verdict_of(error, self._own))
        except trio.TooSlowError:
            self._log.info("statistics failed", session=session.hex(), why="they took too long")
        finally:
            del self._following[session]
            ended.set()
            lanes.leave(session)
