"""A node: its network, its workers and its roles, put together. Implements `NodeService` for the API.

open_node       builds everything, serves until the body ends, then stops in order: refuse what is new, tell
                sessions in flight, end the workers, leave the network
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import trio
from structlog.typing import FilteringBoundLogger

import finode
from finode.committee.book import CommitteeBook
from finode.committee.consent import OwnerPolicy, OwnModel
from finode.committee.desk import Desk
from finode.committee.policy import Candidate, candidate
from finode.committee.rules import MemberView
from finode.config import Config, Role
from finode.errors import ConfigError, PeerRefused
from finode.identity import Identity, PeerId
from finode.ledger.store import FILE_NAME as LEDGER_NAME
from finode.ledger.store import Ledger
from finode.models.registry import ModelEntry, Registry
from finode.net.directory import Offer
from finode.net.host import open_network
from finode.net.interface import Network
from finode.node.balances import Balances
from finode.node.contribution import Contribution
from finode.node.contributions import ContributionStore
from finode.node.cosigning import Cosigning
from finode.node.dealer import DealerRole
from finode.node.deployments import DeploymentStore
from finode.node.filing import Filing
from finode.node.interface import (
    ExplanationView,
    FeedbackView,
    ModelView,
    OfferView,
    PeerView,
    ProgressCallback,
    QueryAnswer,
    QueryRequest,
    ReceiptView,
    RewardsView,
    ServiceView,
    SessionView,
    StatusView,
)
from finode.node.ledger_desk import LedgerDesk
from finode.node.ledger_keeper import FIRST_MESSAGES, LedgerKeeper
from finode.node.negotiator import now_ms
from finode.node.owner import OwnerRole
from finode.node.party import PartyRole
from finode.node.pool import WorkerPool
from finode.node.querier import QuerierRole
from finode.node.quotas import StoredQuotas
from finode.node.receipt_streams import ReceiptStreams
from finode.node.reception import COSIGNING, Reception
from finode.node.secret import NodeSecret
from finode.node.sessions import SessionTable
from finode.node.signing_book import SigningBook
from finode.node.views import model_view
from finode.smpc.counts import has_counts
from finode.smpc.engines import available_engines, engines_for
from finode.wire.committee import RewardTerms
from finode.wire.directory import ServiceSpec

SWEEP_S = 10.0
"""How often deployments are compared with what their owners' records still offer."""
STOP_TIMEOUT_S = 2.0


@dataclass(slots=True)
class _Offering:
    """What the registry offers now; read again on reload."""

    entries: Mapping[bytes, ModelEntry]

    def models(self) -> Mapping[bytes, OwnModel]:
        return MappingProxyType(
            {
                version: OwnModel(
                    version=version,
                    plan_digest=entry.plan.digest(),
                    service=entry.service.name,
                    service_digest=entry.service.digest(),
                    classes=len(entry.service.classes),
                    input_shape=entry.service.input.shape,
                    price=entry.price,
                    engines=engines_for(entry.plan),
                    counts=has_counts(entry.plan),
                )
                for version, entry in self.entries.items()
            }
        )

    def services(self) -> tuple[ServiceSpec, ...]:
        return tuple({entry.service.name: entry.service for entry in self.entries.values()}.values())


class NodeNetwork(Network, Protocol):
    """A network whose roster can be read again."""

    def reload_roster(self) -> None: ...


class Node:
    """A running node. Build it with `open_node`."""

    def __init__(
        self,
        holdings: Holdings,
        network: NodeNetwork,
        pool: WorkerPool,
        sessions: SessionTable,
        owner: OwnerRole,
        querier: QuerierRole,
        desk: Desk,
        contribution: Contribution,
        keeper: LedgerKeeper,
        ledger: LedgerDesk,
        organization: str,
        log: FilteringBoundLogger,
    ) -> None:
        self.desk = desk
        self.keeper = keeper
        self._config = holdings.config
        self._network = network
        self._pool = pool
        self._registry = holdings.registry
        self._offering = holdings.offering
        self._sessions = sessions
        self._owner = owner
        self._querier = querier
        self._ledger = ledger
        self._organization = organization
        self._contribution = contribution
        self._log = log
        self._began = time.monotonic()

    async def query(self, request: QueryRequest, progress: ProgressCallback) -> QueryAnswer:
        """See `NodeService.query`. Raises `PeerRefused` when this node does not have the querier's role."""
        if Role.QUERIER not in self._config.node.roles:
            raise PeerRefused(
                "this node does not have the role of a querier",
                reason="role-not-offered",
                hint="start it with --role querier",
            )
        return await self._querier.query(request, progress)

    async def cancel(self, session: str) -> bool:
        try:
            return self._querier.cancel(bytes.fromhex(session))
        except ValueError:
            return False

    async def feedback(self, session: str, labels: tuple[int, ...]) -> FeedbackView:
        """See `LedgerService.feedback`."""
        return await self._contribution.give_labels(session, labels)

    @property
    def ballots_kept(self) -> int:
        """How many sessions' votes are kept here, as shares, for labels."""
        return self._contribution.ballots_kept

    async def reload(self) -> None:
        """See `NodeService.reload`."""
        before = self._offering.entries
        entries = await trio.to_thread.run_sync(offered_by, self._registry, self._config)
        self._network.reload_roster()
        self._offering.entries = entries
        self._network.announce()
        for version in before.keys() - entries.keys():
            await self._owner.withdraw(version)
        self._log.info("reloaded", models=len(self._offering.entries))

    def ready(self) -> bool:
        return True

    def status(self) -> StatusView:
        states = self._network.states()
        return StatusView(
            peer=self._network.peer_id,
            organization=self._organization,
            federation=self._config.federation.name,
            trust=self._config.federation.trust.value,
            roles=tuple(role.value for role in self._config.node.roles),
            addresses=tuple(f"{address}/p2p/{self._network.peer_id}" for address in self._network.addresses),
            version=finode.__version__,
            uptime_s=time.monotonic() - self._began,
            peers_connected=sum(state.connected for state in states.values()),
            peers_known=sum(state.record is not None for state in states.values()),
            sessions=self._sessions.running,
            capacity=self._config.node.capacity,
            workers=self._pool.warm,
            ready=self.ready(),
        )

    def peers(self) -> tuple[PeerView, ...]:
        now_ms = time.time_ns() // 1_000_000
        views = []
        for state in self._network.states().values():
            record = state.record
            views.append(
                PeerView(
                    peer=state.peer,
                    organization=state.organization,
                    roles=tuple(role.value for role in record.roles) if record else (),
                    addresses=record.addresses if record else (),
                    connected=state.connected,
                    rtt_ms=state.rtt_ms,
                    standing=state.standing,
                    models=len(record.models) if record else 0,
                    expires_in_s=(record.expires_ms - now_ms) / 1000 if record else None,
                )
            )
        return tuple(sorted(views, key=lambda view: (view.organization, view.peer)))

    def services(self) -> tuple[ServiceView, ...]:
        offers: dict[bytes, list[OfferView]] = {}
        specs: dict[bytes, ServiceSpec] = {}
        for peer, record in self._network.records().items():
            for spec in record.services:
                specs[spec.digest()] = spec
                offers.setdefault(spec.digest(), []).extend(
                    OfferView(
                        version=model.version.hex(),
                        owner=peer,
                        organization=self._organization_of(peer),
                        price=model.price,
                        engines=model.engines,
                    )
                    for model in record.models
                    if model.service == spec.name
                )
        # Where specs of one name differ, the one that most models state is the service: the same rule as in a query.
        chosen: dict[str, bytes] = {}
        for digest in sorted(specs, key=lambda key: (-len(offers[key]), key)):
            chosen.setdefault(specs[digest].name, digest)
        return tuple(
            ServiceView(
                name=name,
                input=specs[digest].input,
                classes=specs[digest].classes,
                offers=tuple(sorted(offers[digest], key=lambda offer: (offer.organization, offer.version))),
                conflicting=sum(
                    len(offers[other]) for other, spec in specs.items() if spec.name == name and other != digest
                ),
            )
            for name, digest in sorted(chosen.items())
        )

    def _organization_of(self, peer: PeerId) -> str:
        return self._organization if peer == self._network.peer_id else self._network.organization_of(peer)

    def models(self) -> tuple[ModelView, ...]:
        return tuple(model_view(entry) for entry in self._offering.entries.values())

    def sessions(self) -> tuple[SessionView, ...]:
        return self._sessions.views()

    async def receipts(self, epoch: int | None = None, limit: int = 100) -> tuple[ReceiptView, ...]:
        return await self._ledger.receipts(epoch, limit)

    async def receipt(self, id: str) -> ReceiptView:
        return await self._ledger.receipt(id)

    async def export_receipts(self, epoch: int | None = None) -> bytes:
        return await self._ledger.export_receipts(epoch)

    async def rewards(self, epoch: int | None = None) -> RewardsView:
        return await self._ledger.rewards(epoch)

    async def explain(self, organization: str, epoch: int | None = None) -> ExplanationView:
        return await self._ledger.explain(organization, epoch)


def offered_by(registry: Registry, config: Config) -> Mapping[bytes, ModelEntry]:
    """Return the models that a node offers: those of its registry, if it has the owner's role."""
    if Role.OWNER not in config.node.roles:
        return {}
    return {entry.version: entry for entry in registry.list()}


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a node keeps in its home, and what follows from it for its directory record."""

    config: Config
    registry: Registry
    store: DeploymentStore
    quotas: StoredQuotas
    contributions: ContributionStore
    ledger: Ledger
    offering: _Offering
    signing: SigningBook

    def offer(self) -> Offer:
        """Return what the node says of itself in its record."""
        config = self.config
        return Offer(
            roles=config.node.roles,
            services=self.offering.services(),
            models=tuple(entry.offer() for entry in self.offering.entries.values()),
            engines=available_engines(),
            capacity=config.node.capacity,
            party_price=config.party.price,
            dealer_price=config.dealer.price,
            deployments=self.store.refs(),
        )


def open_holdings(config: Config) -> Holdings:
    """Open what the home keeps, the ledger included; raise `ConfigError` or `StorageFull` if it cannot be."""
    try:
        config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        registry = Registry(config.home)
        store = DeploymentStore(config.home, config.party.deployment_space_mb)
        offering = _Offering(offered_by(registry, config))
        return Holdings(
            config=config,
            registry=registry,
            store=store,
            quotas=StoredQuotas(config.home),
            contributions=ContributionStore(config.home),
            ledger=Ledger.open(config.home / LEDGER_NAME),
            offering=offering,
            signing=SigningBook(config.home),
        )
    except OSError as error:
        raise ConfigError(f"cannot use the home {config.home}: {error.strerror}") from None


@asynccontextmanager
async def open_node(
    config: Config, identity: Identity, secret: NodeSecret, log: FilteringBoundLogger
) -> AsyncIterator[Node]:
    """Run a node on libp2p for as long as the body lasts.

    Raises `ConfigError` or `StorageFull` when the home, the roster or an address cannot be used.
    """
    holdings = open_holdings(config)
    computes = bool({Role.PARTY, Role.DEALER} & set(config.node.roles))
    workers = config.node.workers if computes else 0
    pool = WorkerPool(workers, config.node.worker_threads, log, config.node.device)
    async with (
        open_network(config, identity, holdings.offer, log=log) as network,
        serve_node(holdings, identity, network, pool, secret, log) as node,
    ):
        yield node


@asynccontextmanager
async def serve_node(
    holdings: Holdings,
    identity: Identity,
    network: NodeNetwork,
    pool: WorkerPool,
    secret: NodeSecret,
    log: FilteringBoundLogger,
    filing: Filing | None = None,
) -> AsyncIterator[Node]:
    """Run a node's roles on a network for as long as the body lasts; then stop them in order.

    What sessions leave behind goes to `filing` instead of the ledger, if there is one.
    """
    # What is kept outlives all tasks: one of them may be writing when they are cancelled.
    with closing(holdings.ledger), closing(holdings.signing), closing(holdings.contributions):
        async with _serve_roles(holdings, identity, network, pool, secret, log, filing) as node:
            yield node


@asynccontextmanager
async def _serve_roles(
    holdings: Holdings,
    identity: Identity,
    network: NodeNetwork,
    pool: WorkerPool,
    secret: NodeSecret,
    log: FilteringBoundLogger,
    filing: Filing | None,
) -> AsyncIterator[Node]:
    config = holdings.config
    roles = frozenset(config.node.roles)
    sessions = SessionTable()
    organization = network.organization_of(identity.peer_id) or config.node.organization

    def organization_of(peer: PeerId) -> str:
        return organization if peer == identity.peer_id else network.organization_of(peer)

    balances = Balances(holdings.ledger, organization_of, log)
    async with trio.open_nursery() as nursery:
        keeper = LedgerKeeper(
            holdings.ledger,
            network,
            federation=config.federation.name,
            interval_s=config.network.sync_interval_s,
            log=log,
        )
        filing = filing or keeper
        cosigning = Cosigning(network, identity, holdings.signing, filing, nursery, config, log)
        contribution = Contribution(network, identity, pool, holdings.contributions, filing, config, log)
        dealer = DealerRole(network, pool, sessions, secret, cosigning, config, log)
        party = PartyRole(network, pool, sessions, holdings.store, contribution, cosigning, nursery, config, log)
        owner = OwnerRole(network, holdings.registry, holdings.offering, secret, cosigning, config, log)
        receipt_streams = ReceiptStreams(network)
        receipt_streams.route(FIRST_MESSAGES, keeper.serve_sync)
        book = CommitteeBook(config.node.capacity)
        engines = available_engines()

        def credit_of(peer: PeerId) -> int:
            name = organization_of(peer)
            return balances.credit_of(peer) - book.promised_by(lambda querier: organization_of(querier) == name)

        def view() -> MemberView:
            return MemberView(
                peer=identity.peer_id,
                organization=organization,
                federation=config.federation.name,
                roles=roles,
                organization_of=network.organization_of,
                accepts=network.accepts,
                condemned=keeper.ledger.condemned(),
                engines=engines,
                capacity=config.node.capacity,
                in_use=book.seats_in_use,
                max_batch=config.party.max_batch,
                party_price=config.party.price,
                dealer_price=config.dealer.price,
                rewards=RewardTerms.of(config.federation, 0),
                credit_of=credit_of,
                storage_full=holdings.store.is_full(),
                shutting_down=reception.stopping,
                holds=frozenset(entry.id for entry in holdings.store.all()) | dealer.plans.kept(),
                models=holdings.offering.models(),
                policy=OwnerPolicy.of(config.owner),
                quotas=holdings.quotas,
            )

        def own_candidate() -> Candidate | None:
            record = network.records().get(identity.peer_id)
            return None if record is None else candidate(record, organization=organization, rtt_ms=0.0)

        desk = Desk(identity, view, book, since_ms=now_ms())
        reception = Reception(network, desk, party, dealer, owner, cosigning, contribution, config, log)
        querier = QuerierRole(
            network, organization, sessions, own_candidate, cosigning, contribution, nursery, config, log
        )
        reception.open()
        receipt_streams.route(COSIGNING, reception.serve_cosigning)
        receipt_streams.open()
        keeper.listen(balances.note)
        nursery.start_soon(balances.follow)
        nursery.start_soon(pool.serve)
        nursery.start_soon(reception.tend)
        nursery.start_soon(cosigning.serve)
        nursery.start_soon(contribution.tend)
        nursery.start_soon(keeper.run)
        nursery.start_soon(_sweep, network, party, holdings.store)
        network.announce()
        try:
            ledger = LedgerDesk(holdings.ledger, balances, organization_of)
            yield Node(
                holdings,
                network,
                pool,
                sessions,
                owner,
                querier,
                desk,
                contribution,
                keeper,
                ledger,
                organization,
                log,
            )
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(STOP_TIMEOUT_S):
                await reception.stop()
                await cosigning.stop()
            nursery.cancel_scope.cancel()
            holdings.quotas.close()


async def _sweep(network: Network, party: PartyRole, store: DeploymentStore) -> None:
    """Drop deployments that their owners withdrew while this node did not listen."""
    while True:
        await trio.sleep(SWEEP_S)
        records = network.records()
        for peer in {deployment.owner for deployment in store.all()} & records.keys():
            party.sweep(peer, frozenset(model.version for model in records[peer].models))
