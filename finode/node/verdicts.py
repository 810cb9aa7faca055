"""From an error to a verdict and back: what members tell each other when a session ends early.

A verdict is a claim by the member that noticed. Every other member ends the session with the same verdict, so the
querier hears one story from all: who, at which round, what.
"""

from __future__ import annotations

from finode.errors import (
    BadSignature,
    ConfigError,
    FinodeError,
    InputError,
    LocalError,
    ModelError,
    PeerRefused,
    PeerTimeout,
    PeerUnreachable,
    RemoteError,
    RemoteProtocolError,
    SessionAborted,
    SessionCancelled,
    StorageFull,
    WireError,
    WorkerDied,
)
from finode.identity import PeerId
from finode.wire.committee import RefusalReason
from finode.wire.shares import Fault, Verdict

_FAULTS: tuple[tuple[type[FinodeError], Fault], ...] = (
    (PeerUnreachable, Fault.PEER_LOST),
    (PeerTimeout, Fault.TIMEOUT),
    (RemoteProtocolError, Fault.PROTOCOL),
    (WireError, Fault.PROTOCOL),
    (RemoteError, Fault.PROTOCOL),
    (WorkerDied, Fault.WORKER_DIED),
    (StorageFull, Fault.STORAGE_FULL),
    (ModelError, Fault.INTERNAL),
    (InputError, Fault.WRONG_INPUT),
    (SessionCancelled, Fault.CANCELLED),
)
_REFUSALS = {fault.value: fault for fault in Fault} | {
    RefusalReason.EXPIRED.value: Fault.NOT_SEALED,
    RefusalReason.UNKNOWN_MODEL.value: Fault.NOT_SEALED,
    RefusalReason.BATCH_TOO_LARGE.value: Fault.WRONG_INPUT,
}
_PRIVATE = (InputError, StorageFull, ConfigError, LocalError)
"""Errors whose message may name this node's files: others are told the fault alone."""
WORDS = {
    Fault.PEER_LOST: "was lost",
    Fault.TIMEOUT: "did not answer in time",
    Fault.PROTOCOL: "broke the protocol",
    Fault.WORKER_DIED: "lost its worker process",
    Fault.WRONG_DIGEST: "sent a share with the wrong digest",
    Fault.STORAGE_FULL: "has no space left",
    Fault.BUSY: "is busy",
    Fault.NOT_SEALED: "does not hold this committee any more",
    Fault.QUOTA_USED: "has used up the committee's quota",
    Fault.WRONG_INPUT: "got an input that does not fit the terms",
    Fault.CANCELLED: "cancelled the session",
    Fault.SHUTTING_DOWN: "is shutting down",
    Fault.INTERNAL: "failed inside",
}
BLAMELESS = frozenset({Fault.BUSY, Fault.NOT_SEALED, Fault.QUOTA_USED, Fault.CANCELLED, Fault.SHUTTING_DOWN})
"""Faults that say nothing against a peer's standing."""


class VerdictReached(SessionAborted):
    """A session or a preparation ended with a verdict."""

    code = SessionAborted.code

    def __init__(self, verdict: Verdict) -> None:
        who = verdict.culprit or "the session"
        where = f" at round {verdict.round}" if verdict.round >= 0 else ""
        detail = f": {verdict.detail}" if verdict.detail else ""
        super().__init__(f"{who} {WORDS[verdict.fault]}{where}{detail}", culprit=verdict.culprit, round=verdict.round)
        self.verdict = verdict


def verdict_of(error: FinodeError, own: PeerId, round: int = -1) -> Verdict:
    """Return what this node (`own`) says of an error that ended its part at `round`.

    A peer's fault names the peer; what happened here names this node.
    """
    if isinstance(error, VerdictReached):
        return error.verdict
    culprit: str = own
    if isinstance(error, RemoteError) and error.peer:
        culprit = error.peer
    fault = next((fault for cls, fault in _FAULTS if isinstance(error, cls)), Fault.INTERNAL)
    if isinstance(error, PeerRefused) and error.reason in _REFUSALS:
        fault = _REFUSALS[error.reason]
    if isinstance(error, BadSignature):
        fault = Fault.PROTOCOL
    detail = "" if isinstance(error, _PRIVATE) else error.message[:1024]
    return Verdict(culprit=culprit, round=round, fault=fault, detail=detail)
