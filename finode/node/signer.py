"""Signs receipts that agree with what this node saw, and only ever one of a session."""

from __future__ import annotations

from finode.committee.rules import CLOCK_SKEW_MS
from finode.errors import BadSignature, WireError
from finode.identity import Identity, PeerId
from finode.node.negotiator import now_ms
from finode.node.signing_book import SignedBody, SigningBook
from finode.node.witness import DealerWitness, Sealing, Witness
from finode.wire.receipts import Order, Receipt
from finode.wire.signed import Signed, check_co_signature, co_sign, open_signed


class Signer:
    """This node's key, and the book of what it has signed."""

    def __init__(self, identity: Identity, book: SigningBook) -> None:
        self._identity = identity
        self._book = book

    @property
    def peer(self) -> PeerId:
        return self._identity.peer_id

    async def sign(self, receipt: Receipt, body: bytes) -> SignedBody | None:
        """Return the body of this session that this node signed, now or before, with its signature.

        None: it signed that the session's bundle was used in another one. Raises `StorageFull`.
        """
        return await self._book.sign(receipt, body, lambda: co_sign(self._identity, body, Receipt), now_ms())


def objection(sealing: Sealing, witnesses: list[Witness], receipt: Receipt, order: Signed) -> str:
    """Return what in a receipt is not as this node saw it in any of its roles, "" if nothing."""
    try:
        opened = open_signed(order, Order, signer=sealing.terms.querier)
    except WireError as error:
        return f"its order: {error.message}"
    if receipt.ended_ms > now_ms() + CLOCK_SKEW_MS:
        return "it ended in the future"
    for witness in witnesses:
        if not isinstance(witness, DealerWitness) and witness.order != order:
            return "its order is another one than was given here"
    reasons = (witness.objection(sealing, receipt) for witness in witnesses)
    return sealing.objection(receipt, opened) or next(filter(None, reasons), "")


def is_signature(body: bytes, peer: PeerId, signature: bytes) -> bool:
    """Whether `signature` is the peer's of this receipt."""
    try:
        check_co_signature(body, Receipt, peer, signature)
    except BadSignature:
        return False
    return True


def eligible_parties(receipt: Receipt) -> tuple[PeerId, ...]:
    """Return the parties that are not the culprit."""
    culprit = "" if receipt.verdict is None else receipt.verdict.culprit
    return tuple(party for party in receipt.parties if party != culprit)
