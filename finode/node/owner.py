"""The owner's role: hands out shares of its models' weights, once per deployment, and withdraws them.

The sharing of a deployment is derived from a secret of this home and the deployment's id: asked again, by a party that
lost its file, the owner gives the same share, which fits those that the other parties still keep. Every share but the
last is expanded from a key of its own; the last is the weights minus their sum. Any N - 1 of them are uniform.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import trio
from structlog.typing import FilteringBoundLogger

from finode.config import Config
from finode.errors import PeerRefused, RemoteError, RemoteProtocolError
from finode.identity import PeerId
from finode.models.registry import ModelEntry, Registry
from finode.net.interface import Network, Stream
from finode.node.cosigning import Cosigning
from finode.node.deployments import share_digest
from finode.node.secret import NodeSecret
from finode.node.tasks import together
from finode.smpc import sharing
from finode.wire.committee import ModelTerm, Terms
from finode.wire.shares import (
    PROTOCOL,
    DeploymentStored,
    DeploymentWanted,
    Failed,
    OfferDeployment,
    WithdrawModel,
)
from finode.wire.signed import Signed

A = TypeVar("A", DeploymentWanted, DeploymentStored)


class Offering(Protocol):
    """The models that this node offers now, by version."""

    @property
    def entries(self) -> Mapping[bytes, ModelEntry]: ...


@dataclass(frozen=True, slots=True)
class _Handout:
    """One deployment of one own model to the members that lack it."""

    term: ModelTerm
    deployment: bytes
    plan: bytes
    shares: Sequence[bytes]
    signed: Signed


class OwnerRole:
    """Hands out and withdraws what `offering` has."""

    def __init__(
        self,
        network: Network,
        registry: Registry,
        offering: Offering,
        secret: NodeSecret,
        cosigning: Cosigning,
        config: Config,
        log: FilteringBoundLogger,
    ) -> None:
        self._network = network
        self._cosigning = cosigning
        self._registry = registry
        self._offering = offering
        self._secret = secret
        self._config = config
        self._log = log
        self._sharing = trio.CapacityLimiter(1)

    async def hand_out(self, terms: Terms, holds: Mapping[PeerId, frozenset[bytes]]) -> int:
        """Give every party that lacks it its share of each of this node's models in the terms; return the bytes sent.

        `holds` is what each member said it keeps. Where one lacks a deployment it is offered to all: those whose share
        has another digest, because this owner's secret was lost meanwhile, then take the new one too. Raises a
        `RemoteError` naming the party that could not be served.
        """
        sent = 0
        for term in terms.models:
            if term.owner != self._network.peer_id:
                continue
            deployment = terms.deployment_id(term)
            members = (*terms.parties, terms.dealer)
            if all(deployment in holds.get(peer, ()) for peer in members):
                continue
            entry = self._offering.entries.get(term.version)
            if entry is None:
                raise PeerRefused(
                    f"model {term.version.hex()[:12]} was withdrawn",
                    peer=self._network.peer_id,
                    reason="unknown-model",
                )
            shares = await trio.to_thread.run_sync(
                self._share, entry, terms, deployment, limiter=self._sharing, abandon_on_cancel=True
            )
            signed = await self._cosigning.deployment(terms, term)
            handout = _Handout(term, deployment, entry.plan.encode(), shares, signed)
            sent += sum(await together([partial(self._give, terms, handout, peer) for peer in members]))
            self._log.info(
                "deployment handed out",
                model=term.version.hex()[:12],
                deployment=deployment.hex()[:12],
                bytes=sent,
            )
        return sent

    def _share(self, entry: ModelEntry, terms: Terms, deployment: bytes) -> list[bytes]:
        return sharing.share_weights(
            entry.plan,
            self._registry.load_weights(entry.version),
            len(terms.parties),
            terms.fractional_bits,
            seed=self._secret.derive("sharing", deployment),
        )

    async def _give(self, terms: Terms, handout: _Handout, peer: PeerId) -> int:
        share = handout.shares[terms.parties.index(peer)] if peer in terms.parties else b""
        timeout_s = self._config.session.deploy_timeout_s
        stream = await self._network.open(peer, PROTOCOL, timeout_s=self._config.session.answer_timeout_s)
        try:
            await stream.send(
                OfferDeployment(
                    committee=terms.committee_id(),
                    deployment=handout.deployment,
                    version=handout.term.version,
                    plan=handout.plan,
                    share_bytes=len(share),
                    share_digest=share_digest(share),
                    signed=handout.signed,
                )
            )
            answer = await self._answer(stream, DeploymentWanted, timeout_s)
            if answer.wanted:
                await stream.send_bulk(share, timeout_s=timeout_s)
            await self._answer(stream, DeploymentStored, timeout_s)
        finally:
            await stream.close()
        return len(share) if answer.wanted else 0

    async def _answer(self, stream: Stream, kind: type[A], timeout_s: float) -> A:
        reply = await stream.receive(kind, Failed, timeout_s=timeout_s)
        if isinstance(reply, Failed):
            raise PeerRefused(
                f"{stream.peer} cannot keep the deployment: {reply.verdict.detail or reply.verdict.fault}",
                peer=stream.peer,
                reason=reply.verdict.fault,
            )
        if not isinstance(reply, kind):
            raise RemoteProtocolError("an answer out of place", peer=stream.peer)
        return reply

    async def withdraw(self, version: bytes) -> None:
        """Tell every connected peer to drop its deployments of one version; others learn it from the directory."""
        for peer, state in self._network.states().items():
            if not state.connected:
                continue
            try:
                stream = await self._network.open(peer, PROTOCOL, timeout_s=self._config.session.answer_timeout_s)
                await stream.send(WithdrawModel(version=version))
                await stream.close()
            except RemoteError as error:
                self._log.info("withdrawal not delivered; the directory will tell", peer=peer, reason=error.message)
