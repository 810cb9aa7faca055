"""What the API and the daemon may ask of a node, as plain frozen types and one protocol.

All ids are lower-case hex strings here, peers are peer ids, times are UTC seconds. Everything is JSON-ready through
`msgspec.to_builtins`, but for the numpy input of a query.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from finode.wire.directory import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryRequest:
    """One query. `inputs` is (batch, *shape) float64, finite. `None` takes the node's own setting.

    `weights`, for the vote `weighted` alone, are by an owner's organization, by the first digits of a model's version,
    or of all others by "*". `copies` and `gamma` are for the vote `augmented` alone.
    """

    service: str
    inputs: npt.NDArray[np.float64] = field(repr=False)
    parties: int | None = None
    vote: str = "soft"
    reveal: str = "probabilities"
    deadline_s: float | None = None
    engine: str | None = None
    weights: Mapping[str, float] | None = None
    copies: int | None = None
    gamma: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryProgress:
    """How far a query is. `phase` is committee, deployment, preprocessing or rounds; `total` 0 if unknown."""

    session: str
    phase: str
    done: int
    total: int
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOutView:
    """A model of the service that had no vote in an answer, its owner, and why."""

    owner: str
    version: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitteeView:
    """A sealed committee. Members are peer ids; `organizations` maps each, and the owners of models that were left
    out, to its name."""

    id: str
    parties: tuple[str, ...]
    dealer: str
    owners: tuple[str, ...]
    organizations: dict[str, str]
    left_out: tuple[LeftOutView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Seconds by phase, as the querier saw them.

    `offline_s` is the wait for correlated randomness: near 0 where it was `dealt_ahead`. `online_s` is all the rest of
    the sessions, sharing the input and adding up the output included; of that, `compute_s` is what the slowest party's
    worker computed.
    """

    negotiation_s: float
    deployment_s: float
    offline_s: float
    online_s: float
    total_s: float
    dealt_ahead: bool = False
    compute_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Rounds, bytes each party sent to the other parties, and bytes of the bundle to all parties, and to each."""

    rounds: int
    bytes_sent_per_party: tuple[int, ...]
    offline_bytes: int
    offline_bytes_per_party: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class QueryAnswer:
    """The answer. `probabilities` is (batch, classes) or None, `top` the largest ones or None; `labels` are names."""

    session: str
    service: str
    labels: tuple[str, ...]
    label_indices: tuple[int, ...]
    probabilities: tuple[tuple[float, ...], ...] | None
    top: tuple[float, ...] | None
    classes: tuple[str, ...]
    committee: CommitteeView
    timings: Timings
    traffic: Traffic
    engine: str
    attempts: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusView:
    """The node itself."""

    peer: str
    organization: str
    federation: str
    trust: str
    roles: tuple[str, ...]
    addresses: tuple[str, ...]
    version: str
    uptime_s: float
    peers_connected: int
    peers_known: int
    sessions: int
    capacity: int
    workers: int
    ready: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerView:
    """A peer of the directory or the roster. `rtt_ms` is None where not connected."""

    peer: str
    organization: str
    roles: tuple[str, ...]
    addresses: tuple[str, ...]
    connected: bool
    rtt_ms: float | None
    standing: float
    models: int
    expires_in_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferView:
    """One model that somebody offers for a service."""

    version: str
    owner: str
    organization: str
    price: int
    engines: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceView:
    """A service as the directory knows it. `conflicting` counts offers left out because their spec differs."""

    name: str
    input: InputSpec
    classes: tuple[str, ...]
    offers: tuple[OfferView, ...]
    conflicting: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One of this node's own models."""

    version: str
    service: str
    price: int
    parameters: int
    steps: int
    operators: tuple[str, ...]
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]
    softmax_at_end: bool
    range_bits: int
    added: float


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A session that runs here, or ended lately. `role` is what this node is in it; `outcome` "" while it runs."""

    session: str
    committee: str
    service: str
    role: str
    querier: str
    phase: str
    round: int
    batch: int
    started: float
    seconds: float
    outcome: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkView:
    """What one member of a session did, as all of them signed. `role` is party or dealer."""

    peer: str
    organization: str
    role: str
    rounds: int
    bytes_sent: int
    bundle_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelUseView:
    """A model that a session ran. `signed`: the ledger has its owner's signature of the deployment."""

    version: str
    owner: str
    organization: str
    deployment: str
    signed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ReceiptView:
    """One receipt of the ledger. `price` is micro-credits for all inputs; `withheld` names who did not sign.

    `settled`: the owners' part is paid out; until the sums of its epoch are opened it is pending.
    """

    id: str
    session: str
    committee: str
    sealed: str
    service: str
    querier: str
    organization: str
    parties: tuple[str, ...]
    dealer: str
    models: tuple[ModelUseView, ...]
    engine: str
    vote: str
    reveal: str
    count: int
    epoch: int
    started: float
    ended: float
    outcome: str
    verdict: str
    work: tuple[WorkView, ...]
    transcript: str
    price: int
    scheme: str
    signers: tuple[str, ...]
    withheld: tuple[str, ...]
    settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceView:
    """What one organization paid and earned, in micro-credits; `balance` is what it earned less what it paid."""

    organization: str
    peers: tuple[str, ...]
    balance: int
    paid: int
    as_owner: int
    as_party: int
    as_dealer: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardsView:
    """Balances of all organizations, of all epochs or of one. What was paid in is what was paid out and is pending.

    `digest` is the hash of all balances by peer: equal on nodes that have the same receipts.
    """

    epoch: int | None
    epochs: tuple[int, ...]
    receipts: int
    statements: int
    paid_in: int
    paid_out: int
    pending: int
    schemes: dict[str, int]
    balances: tuple[BalanceView, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedView:
    """One amount of one organization and where it comes from."""

    receipt: str
    session: str
    epoch: int
    role: str
    amount: int
    scheme: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplanationView:
    """Why an organization has its balance: every amount, by receipt; the amounts add up to the balance."""

    organization: str
    balance: int
    amounts: tuple[ExplainedView, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackView:
    """That labels were taken for a session; `labelled` of its inputs had one."""

    session: str
    count: int
    labelled: int


ProgressCallback = Callable[[QueryProgress], Awaitable[None]]


class LedgerService(Protocol):
    """What a running node does for its API with receipts and rewards. All errors are `FinodeError`s."""

    async def receipts(self, epoch: int | None = None, limit: int = 100) -> tuple[ReceiptView, ...]:
        """Return the ledger's receipts, the latest first."""

    async def receipt(self, id: str) -> ReceiptView:
        """Return the one receipt whose id or session begins with `id`.

        Raises `UnknownRecord` if there is none, `InputError` if there are several.
        """

    async def export_receipts(self, epoch: int | None = None) -> bytes:
        """Return receipts, deployments, statements and proofs as a file that `finode receipts verify` reads."""

    async def rewards(self, epoch: int | None = None) -> RewardsView:
        """Return the balances that follow from the ledger."""

    async def explain(self, organization: str, epoch: int | None = None) -> ExplanationView:
        """Return why an organization (or a peer) has its balance; raise `UnknownRecord` for one that has none."""

    async def feedback(self, session: str, labels: tuple[int, ...]) -> FeedbackView:
        """Share labels of a session that this node asked, -1 for an input without one; raise `InputError` or
        `PeerRefused` when the session is unknown or its votes are not kept any more."""


class NodeService(LedgerService, Protocol):
    """What a running node does for its API. All errors are `FinodeError`s."""

    async def query(self, request: QueryRequest, progress: ProgressCallback) -> QueryAnswer:
        """Agree on a committee, run the query and return the answer. Cancelling the call cancels the session."""

    def ready(self) -> bool:
        """Whether the node listens. Its workers may still be warming (`status`): a session then waits for one."""

    def status(self) -> StatusView: ...

    def peers(self) -> tuple[PeerView, ...]: ...

    def services(self) -> tuple[ServiceView, ...]: ...

    def models(self) -> tuple[ModelView, ...]: ...

    def sessions(self) -> tuple[SessionView, ...]: ...

    async def cancel(self, session: str) -> bool:
        """Cancel a session that this node started as querier; False if there is none of that id."""

    async def reload(self) -> None:
        """Read the roster and the model registry again; what was removed is withdrawn, what is new is announced."""
