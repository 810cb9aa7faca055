"""Which HTTP status an error has, and what its body says.

The body is `{"error": message}`, as the Open Inference Protocol has it, with what the client needs to raise the same
exception again: `code`, `message`, `hint`, and where the error has them `peer`, `reason`, `culprit` and `round`.
"""

from __future__ import annotations

from typing import Final

from finode.errors import (
    CommitteeError,
    ConfigError,
    FinodeError,
    InputError,
    MessageTooLarge,
    PeerTimeout,
    RemoteError,
    SessionAborted,
    SessionCancelled,
    StorageFull,
    UnknownRecord,
    UnknownService,
)

INTERNAL: Final = "internal error, see the daemon's log"

# The first that fits counts, so a subclass stands before its base.
_STATUS: Final[tuple[tuple[type[FinodeError], int], ...]] = (
    (UnknownService, 404),
    (UnknownRecord, 404),
    (InputError, 400),
    (MessageTooLarge, 413),
    (ConfigError, 409),  # a file of the home is wrong: a conflict that the person resolves, not a fault of the daemon
    (CommitteeError, 503),
    (PeerTimeout, 504),
    (RemoteError, 502),
    (SessionAborted, 502),
    (SessionCancelled, 409),
    (StorageFull, 507),
)
_DETAILS: Final = ("peer", "reason", "culprit", "round")


def status_of(error: FinodeError) -> int:
    """Return the status of an error; 500 for one that is a fault of this node."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def describe(error: FinodeError) -> dict[str, str | int]:
    """Return an error's `code`, `message`, `hint` and details."""
    details = {name: getattr(error, name) for name in _DETAILS if hasattr(error, name)}
    return {"code": error.code, "message": error.message, "hint": error.hint, **details}


def body_of(error: FinodeError) -> dict[str, str | int]:
    """Return the body of a response that carries an error."""
    text = f"{error.message}; {error.hint}" if error.hint else error.message
    return {"error": text, **describe(error)}


def internal() -> dict[str, str | int]:
    """Return what is said of an exception that nobody expected: nothing that it might give away."""
    return {"error": INTERNAL, **describe(FinodeError(INTERNAL))}
