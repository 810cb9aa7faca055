"""Receipts with made-up signatures, for tests of storing alone: a hundred times as fast to make as signed ones."""

from __future__ import annotations

from finode.ledger.records import VerifiedReceipt
from finode.wire.receipts import CoSignature, SignedReceipt
from finode.wire.signed import Signed
from tests.ledger.making import MEMBERS, QUERIER, hash_of, receipt_of


def unsigned_receipt(number: int) -> VerifiedReceipt:
    """Return what passes for the verified receipt of a number: 2 parties, a dealer and a querier have "signed"."""
    receipt = receipt_of(number)
    peers = sorted(member.peer_id for member in MEMBERS)
    signature = hash_of(f"signature {number}") * 2
    signed = SignedReceipt(
        body=receipt.encode(),
        order=Signed(body=b"an order", signer=QUERIER.peer_id, signature=signature),
        signatures=tuple(CoSignature(peer=peer, signature=signature) for peer in peers),
    )
    return VerifiedReceipt(id=receipt.id, receipt=receipt, signed=signed, signers=frozenset(peers), withheld=())
