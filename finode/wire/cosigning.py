"""From the end of a session to its co-signed receipt: /finode/receipts/1, messages between members of a committee.

One party collects: the first in the terms that is not the culprit of an aborted session; when it stays silent, the
next one after a pause. One stream to every other member, on which it asks:

    collector -> member     AskReport                       of a party, the dealer, the querier
    member    -> collector  Report | Decline                once the session has ended there
    collector -> member     AskSignature(receipt)           the parties first: the dealer and the querier want to see
                                                            that most parties have signed
    member    -> collector  Signature | Decline
    collector -> member     Finished(receipt)               and again when signatures come late

A member signs one body of a session and never another. Asked about another one it answers with the body that it
signed, and a collector that finds nothing wrong with that one goes on with it: so two collectors end with one receipt.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from finode.wire.committee import MAX_PARTIES
from finode.wire.message import KIB, Message, check, check_id, register
from finode.wire.receipts import (
    HASH_BYTES,
    PROTOCOL,
    Receipt,
    SignedReceipt,
    Work,
)
from finode.wire.shares import SESSION_ID_BYTES, Verdict

__all__ = [
    "PROTOCOL",
    "AskReport",
    "AskSignature",
    "Decline",
    "DeclineReason",
    "Ending",
    "Finished",
    "Report",
    "Signature",
]


class Ending(StrEnum):
    """How a session ended at one member: answered (only the querier knows), its part done, or aborted."""

    ANSWERED = "answered"
    SERVED = "served"
    ABORTED = "aborted"


class DeclineReason(StrEnum):
    """Why a member does not report, or does not sign."""

    UNKNOWN_SESSION = "unknown-session"
    RUNNING = "running"
    DISAGREES = "disagrees"
    FEW_PARTIES = "few-parties"
    STORAGE_FULL = "storage-full"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class AskReport(Message):
    """Party -> member: what did you see of this session? The dealer knows it by its bundle's `serial` alone."""

    code: ClassVar[int] = 104

    session: bytes
    committee: bytes
    serial: bytes

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check_id(self.committee, HASH_BYTES, "committee")
        check_id(self.serial, 16, "serial")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Report(Message):
    """Member -> party: how the session ended here, and what this member did in it.

    `verdict` is there only where it was aborted; the `work` of a querier alone is nothing. `transcript` is keyed, and
    there where a party ran all rounds; `dealt` are the dealer's bytes to each party.
    """

    code: ClassVar[int] = 105
    limit: ClassVar[int] = 8 * KIB

    session: bytes
    ending: Ending
    verdict: Verdict | None
    work: Work
    transcript: bytes = b""
    dealt: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check((self.ending is Ending.ABORTED) == (self.verdict is not None), "a verdict where it was aborted alone")
        check(len(self.transcript) in (0, HASH_BYTES), "transcript has 32 bytes or none")
        check(len(self.dealt) <= MAX_PARTIES, f"at most {MAX_PARTIES} parties")
        check(all(0 <= size < 1 << 53 for size in self.dealt), "dealt is not negative")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class AskSignature(Message):
    """Party -> member: sign this receipt, which has the signatures given so far."""

    code: ClassVar[int] = 106
    limit: ClassVar[int] = 84 * KIB

    receipt: SignedReceipt


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Signature(Message):
    """Member -> party: my signature. `body` is empty, or another one of this session that I signed before."""

    code: ClassVar[int] = 107
    limit: ClassVar[int] = 72 * KIB

    session: bytes
    body: bytes
    signature: bytes

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check(len(self.body) <= Receipt.limit, "the receipt is too large")
        check_id(self.signature, 64, "signature")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Decline(Message):
    """Member -> party: no report or no signature, and why; `detail` for the log."""

    code: ClassVar[int] = 108

    session: bytes
    reason: DeclineReason
    detail: str = ""

    def __post_init__(self) -> None:
        check_id(self.session, SESSION_ID_BYTES, "session")
        check(len(self.detail) <= 1024, "detail too long")


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Finished(Message):
    """Party -> member: the receipt with the signatures that were given."""

    code: ClassVar[int] = 109
    limit: ClassVar[int] = 84 * KIB

    receipt: SignedReceipt
