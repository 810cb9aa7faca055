"""Drives the querier's negotiation machine over streams: one stream per member and proposal.

The machine says whom to send what; each exchange runs in a task of its own and brings back one event. A member that
does not answer in time, cannot be reached or breaks the protocol is silent.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import trio
from structlog.typing import FilteringBoundLogger

from finode.committee import negotiation
from finode.committee.agreement import Agreement
from finode.committee.negotiation import (
    Cancelled,
    Negotiation,
    SendDissolve,
    SendPropose,
    SendSeal,
    Silent,
    State,
)
from finode.committee.policy import Candidate, Request
from finode.committee.sealed import SealedCommittee
from finode.errors import FinodeError, LocalError, RemoteError
from finode.identity import PeerId
from finode.net.interface import Network, Stream
from finode.wire.committee import PROTOCOL, Accepted, Dissolve, Propose, Refuse, Seal, Sealed
from finode.wire.message import Message

DISSOLVE_TIMEOUT_S = 1.0
"""Telling members that terms are off is a courtesy: they expire by themselves."""
Inbound = tuple[PeerId, Message | str]
"""What an exchange brought: a message, or why there was none."""


def now_ms() -> int:
    """Return the UTC time in milliseconds."""
    return time.time_ns() // 1_000_000


class _Talk:
    """One negotiation's streams and tasks."""

    def __init__(self, network: Network, nursery: trio.Nursery, answer_timeout_s: float) -> None:
        self._network = network
        self._nursery = nursery
        self._timeout_s = answer_timeout_s
        self._streams: dict[PeerId, Stream] = {}
        self._send, self.events = trio.open_memory_channel[Inbound](1024)

    def act(self, action: negotiation.Action) -> None:
        """Start what an action asks for."""
        match action:
            case SendPropose(peer, message):
                self._nursery.start_soon(self._propose, peer, message)
            case SendSeal(peer, message):
                self._nursery.start_soon(self._seal, peer, message)
            case SendDissolve(peer, message):
                self._nursery.start_soon(self._dissolve, peer, message)

    async def _propose(self, peer: PeerId, message: Propose) -> None:
        try:
            stream = await self._network.open(peer, PROTOCOL, timeout_s=self._timeout_s)
            self._streams[peer] = stream
            await stream.send(message)
            answer: Message = await stream.receive(Accepted, Refuse, timeout_s=self._timeout_s)
        except RemoteError as error:
            await self._send.send((peer, error.message))
        else:
            await self._send.send((peer, answer))

    async def _seal(self, peer: PeerId, message: Seal) -> None:
        stream = self._streams[peer]
        try:
            await stream.send(message)
            answer: Message = await stream.receive(Sealed, Refuse, timeout_s=self._timeout_s)
        except RemoteError as error:
            await self._send.send((peer, error.message))
        else:
            await self._send.send((peer, answer))

    async def _dissolve(self, peer: PeerId, message: Dissolve) -> None:
        await dissolve(self._network, peer, message)

    async def close(self) -> None:
        for stream in self._streams.values():
            await stream.close()


async def dissolve(network: Network, peer: PeerId, message: Dissolve) -> None:
    """Tell one member that a committee is over; one that cannot be told lets it expire."""
    with trio.move_on_after(DISSOLVE_TIMEOUT_S):
        try:
            stream = await network.open(peer, PROTOCOL, timeout_s=DISSOLVE_TIMEOUT_S)
            await stream.send(message, timeout_s=DISSOLVE_TIMEOUT_S)
            await stream.close()
        except RemoteError:
            return


async def agree(
    network: Network,
    request: Request,
    candidates: Iterable[Candidate],
    *,
    lost: Mapping[str, str],
    deadline_ms: int,
    answer_timeout_s: float,
    log: FilteringBoundLogger,
) -> Agreement:
    """Negotiate a committee; `lost` says why the query goes without some peers already (`Agreement.of`).

    Raises `CommitteeError`, `TooFewParties`, `PeerRefused` or `UnknownService`.
    """
    machine = Negotiation(request, candidates, deadline_ms=deadline_ms)
    outcome: SealedCommittee | FinodeError | None = None
    async with trio.open_nursery() as nursery:
        talk = _Talk(network, nursery, answer_timeout_s)
        try:
            pending = list(machine.start(now_ms()))
            while outcome is None:
                outcome = _settle(talk, pending)
                if outcome is None:
                    peer, heard = await talk.events.receive()
                    pending = _digest(machine, network, peer, heard, log)
        except trio.Cancelled:
            await _call_off(machine, network)
            raise
        finally:
            await talk.close()
    if isinstance(outcome, FinodeError):
        raise outcome
    if machine.selection is None:
        raise LocalError("a committee was sealed that nobody chose")
    agreement = Agreement.of(outcome, machine.selection, machine.refusals, lost)
    log.info(
        "committee sealed",
        committee=outcome.id.hex()[:12],
        parties=len(outcome.terms.parties),
        models=len(outcome.terms.models),
        left_out=len(agreement.left_out),
        proposals=machine.attempts,
    )
    return agreement


async def _call_off(machine: Negotiation, network: Network) -> None:
    """Tell those who accepted that nothing comes of it: their seats are free at once."""
    if machine.state not in (State.PROPOSED, State.SEALING):
        return
    actions = machine.handle(Cancelled("the query was given up"), now_ms())
    with trio.CancelScope(shield=True), trio.move_on_after(DISSOLVE_TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for action in actions:
                if isinstance(action, SendDissolve):
                    nursery.start_soon(dissolve, network, action.peer, action.message)


def _settle(talk: _Talk, actions: list[negotiation.Action]) -> SealedCommittee | FinodeError | None:
    outcome: SealedCommittee | FinodeError | None = None
    for action in actions:
        match action:
            case negotiation.Done(committee):
                outcome = committee
            case negotiation.Failed(error):
                outcome = error
            case negotiation.Ended():
                raise LocalError("a negotiation ended before it was sealed")
            case _:
                talk.act(action)
    return outcome


def _digest(
    machine: Negotiation, network: Network, peer: PeerId, heard: Message | str, log: FilteringBoundLogger
) -> list[negotiation.Action]:
    """Hand one answer to the machine; a peer that breaks the protocol counts as silent and loses standing."""
    if isinstance(heard, str):
        log.info("no answer to a proposal", peer=peer, reason=heard)
        return _silent(machine, peer, heard)
    if isinstance(heard, Refuse):
        log.info("refused", peer=peer, reason=heard.reason.value, subject=heard.subject, detail=heard.detail)
    try:
        return machine.receive(peer, heard, now_ms())
    except RemoteError as error:
        network.fault(peer, 10.0, error.message)
        return _silent(machine, peer, error.message)


def _silent(machine: Negotiation, peer: PeerId, detail: str) -> list[negotiation.Action]:
    if peer not in machine.waiting_for():
        return []
    return machine.handle(Silent(peer, detail), now_ms())
