"""Every error finode raises on purpose.

    FinodeError                         code, message, hint: what happened, to which peer or file, what to do
    |- ConfigError                      a setting, a flag or a file of the home is wrong
    |  |- HomeInUse                     another daemon runs on this home
    |  '- IdentityError                 the key file is missing, unreadable or not a key
    |- InputError                       what the person asked cannot be done: shape, type, NaN, file
    |  |- UnknownService                no such service in the directory
    |  |- UnknownRecord                 no such receipt, session or organization in the ledger
    |  |- ModelError                    a model file is corrupt or does not fit its service
    |  |  '- UnsupportedOperator        an ONNX operator that no engine here runs
    |  '- RangeExceeded                 a value does not fit the fixed-point range
    |- LocalError                       we misused our own protocol: a bug here, never the peer's fault
    |  '- LocalProtocolError            an event that the state machine does not allow now
    |- RemoteError                      a peer is at fault; carries `peer`
    |  |- RemoteProtocolError           it sent what the protocol does not allow
    |  |- PeerUnreachable               no address answered, or the connection was lost
    |  |- PeerTimeout                   it did not answer before the deadline
    |  |- PeerRefused                   it refused, with an enumerated reason
    |  '- VersionMismatch               no common protocol version
    |- WireError                        bytes that are not a valid message
    |  |- MalformedMessage
    |  |- MessageTooLarge
    |  '- BadSignature
    |- CommitteeError                   no committee could be agreed
    |  '- TooFewParties
    |- SessionAborted                   a session ended without an answer; carries the verdict: culprit and round
    |- SessionCancelled                 the querier gave up
    |- WorkerDied                       a worker process ended; only its sessions are lost
    |- StorageFull                      the disk, or the space that the configuration allows, is used up
    '- DaemonUnavailable                the local daemon does not answer

A `code` is the class's name in kebab case; it crosses the local API, where the client turns it back into the class.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import ClassVar


class FinodeError(Exception):
    """Base of all errors raised on purpose.

    `message` says what happened and to which peer, file or field; `hint` says what to do next.
    """

    code: ClassVar[str] = "finode-error"

    def __init_subclass__(cls) -> None:
        cls.code = re.sub(r"(?<!^)(?=[A-Z])", "-", cls.__name__).lower()

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class ConfigError(FinodeError):
    """A setting, a flag or a file of the home is wrong."""


class HomeInUse(ConfigError):
    """Another daemon runs on this home."""


class IdentityError(ConfigError):
    """The key file is missing, unreadable or not a key."""


class InputError(FinodeError):
    """What the person asked cannot be done: a shape, a type, a NaN, a file."""


class UnknownService(InputError):
    """No service of that name is offered in the federation."""


class UnknownRecord(InputError):
    """The ledger has no such receipt, or nothing of that organization."""


class ModelError(InputError):
    """A model file is corrupt, or does not fit its service."""


class UnsupportedOperator(ModelError):
    """An ONNX operator that no engine here runs; names the operator, its node and what is supported."""


class RangeExceeded(InputError):
    """A value does not fit the fixed-point range of the plan."""


class LocalError(FinodeError):
    """We misused our own protocol: a bug here, never the peer's fault."""


class LocalProtocolError(LocalError):
    """An event that the state machine does not allow in its present state."""


class RemoteError(FinodeError):
    """A peer is at fault. `peer` is its peer id."""

    def __init__(self, message: str, *, peer: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.peer = peer


class RemoteProtocolError(RemoteError):
    """The peer sent what the protocol does not allow."""


class PeerUnreachable(RemoteError):
    """No address of the peer answered, or its connection was lost."""


class PeerTimeout(RemoteError):
    """The peer did not answer before the deadline."""


class PeerRefused(RemoteError):
    """The peer refused; `reason` is the value of a `finode.wire.committee.RefusalReason`."""

    def __init__(self, message: str, *, peer: str = "", reason: str = "", hint: str = "") -> None:
        super().__init__(message, peer=peer, hint=hint)
        self.reason = reason


class VersionMismatch(RemoteError):
    """The peer speaks no protocol version that we speak; the message lists both sides' versions."""


class WireError(FinodeError):
    """Bytes that are not a valid message."""


class MalformedMessage(WireError):
    """Not canonical, of an unknown type, or a field is missing, extra or out of range."""


class MessageTooLarge(WireError):
    """A message exceeds the size limit of its type."""


class BadSignature(WireError):
    """A signature does not verify, or is by another key than claimed."""


class CommitteeError(FinodeError):
    """No committee could be agreed."""


class TooFewParties(CommitteeError):
    """Fewer eligible parties accepted than the query needs."""


class SessionAborted(FinodeError):
    """A session ended without an answer.

    `culprit` is the peer id at fault ("" if none), `round` the round at which it was noticed (-1 before rounds).
    """

    def __init__(self, message: str, *, culprit: str = "", round: int = -1, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.culprit = culprit
        self.round = round


class SessionCancelled(FinodeError):
    """The querier gave up."""


class WorkerDied(FinodeError):
    """A worker process ended; only its own sessions are lost."""


class StorageFull(FinodeError):
    """The disk, or the space that the configuration allows, is used up."""


class DaemonUnavailable(FinodeError):
    """The local daemon does not answer on its API address."""


def _tree(root: type[FinodeError]) -> Iterator[type[FinodeError]]:
    yield root
    for child in root.__subclasses__():
        yield from _tree(child)


def error_class(code: str) -> type[FinodeError]:
    """Return the exception class of a `code`; `FinodeError` for one that this version does not know."""
    return next((cls for cls in _tree(FinodeError) if cls.code == code), FinodeError)
