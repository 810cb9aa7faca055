"""One record from two versions of it, and proofs from records that contradict each other.

The ledger is a set that grows. Two nodes may have seen the same receipt with other signatures, so that versions are
merged: `merge(a, b)` is commutative, associative and idempotent, and so the order in which versions come, how often,
and over whom, changes nothing. In every choice the lower bytes stay, since no node could know which came first.

- a receipt or a statement: all signatures of both; of two valid ones by one peer the lower; of two orders the lower
- a deployment: the lower envelope
- an equivocation: one proof per signer, of the lowest two bodies. One is enough to condemn it, and a signer of many
  bodies cannot fill the ledgers with proofs of their pairs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence

from finode.identity import PeerId
from finode.ledger.records import (
    Verified,
    VerifiedDeployment,
    VerifiedEquivocation,
    VerifiedReceipt,
    VerifiedStatement,
    contradict,
)
from finode.wire.receipts import CoSignature, Equivocation
from finode.wire.signed import Signed


def merge(one: Verified, other: Verified) -> Verified:
    """Return what two versions of one record are together: `one` itself when `other` adds nothing.

    Raises `ValueError` for two that are no versions of one record.
    """
    match one, other:
        case VerifiedReceipt(), VerifiedReceipt() if one.id == other.id:
            return _merge_receipts(one, other)
        case VerifiedStatement(), VerifiedStatement() if one.id == other.id:
            signatures = _union(one.signed.signatures, other.signed.signatures)
            if signatures == one.signed.signatures:
                return one
            return dataclasses.replace(one, signed=dataclasses.replace(one.signed, signatures=signatures))
        case VerifiedDeployment(), VerifiedDeployment() if one.deployment.deployment == other.deployment.deployment:
            return other if _order(other.signed) < _order(one.signed) else one
        case VerifiedEquivocation(), VerifiedEquivocation() if one.signer == other.signer:
            return _merge_proofs(one, other)
    raise ValueError("these are no versions of one record")


def proofs(one: Verified, other: Verified) -> Iterator[VerifiedEquivocation]:
    """Yield a proof against each peer that signed both of two records that contradict each other."""
    match one, other:
        case VerifiedReceipt(), VerifiedReceipt() if contradict(one.receipt, other.receipt):
            yield from _proofs(one, other, of_statements=False)
        case VerifiedStatement(), VerifiedStatement() if contradict(one.statement, other.statement):
            yield from _proofs(one, other, of_statements=True)


def _proofs(
    one: VerifiedReceipt | VerifiedStatement, other: VerifiedReceipt | VerifiedStatement, *, of_statements: bool
) -> Iterator[VerifiedEquivocation]:
    first, second = sorted((one.signed, other.signed), key=lambda signed: signed.body)
    by_peer = {two.peer: two.signature for two in second.signatures}
    for signature in first.signatures:
        if signature.peer in by_peer:
            proof = Equivocation(
                signer=signature.peer,
                of_statements=of_statements,
                first=first.body,
                first_signature=signature.signature,
                second=second.body,
                second_signature=by_peer[signature.peer],
            )
            yield VerifiedEquivocation(signer=signature.peer, signed=proof)


def _merge_receipts(one: VerifiedReceipt, other: VerifiedReceipt) -> VerifiedReceipt:
    signatures = _union(one.signed.signatures, other.signed.signatures)
    order = min(one.signed.order, other.signed.order, key=_order)
    if signatures == one.signed.signatures and order == one.signed.order:
        return one
    signers = one.signers | other.signers
    return VerifiedReceipt(
        id=one.id,
        receipt=one.receipt,
        signed=dataclasses.replace(one.signed, order=order, signatures=signatures),
        signers=signers,
        withheld=tuple(peer for peer in one.receipt.signers() if peer not in signers),
    )


def _merge_proofs(one: VerifiedEquivocation, other: VerifiedEquivocation) -> VerifiedEquivocation:
    ours, theirs = one.signed, other.signed
    bodies = (ours.of_statements, ours.first, ours.second)
    if bodies != (theirs.of_statements, theirs.first, theirs.second):
        return one if bodies < (theirs.of_statements, theirs.first, theirs.second) else other
    merged = dataclasses.replace(
        ours,
        first_signature=min(ours.first_signature, theirs.first_signature),
        second_signature=min(ours.second_signature, theirs.second_signature),
    )
    return one if merged == ours else VerifiedEquivocation(signer=one.signer, signed=merged)


def _union(ours: Sequence[CoSignature], theirs: Sequence[CoSignature]) -> tuple[CoSignature, ...]:
    lowest: dict[PeerId, bytes] = {}
    for one in (*ours, *theirs):
        lowest[one.peer] = min(one.signature, lowest.get(one.peer, one.signature))
    return tuple(CoSignature(peer=peer, signature=lowest[peer]) for peer in sorted(lowest))


def _order(signed: Signed) -> tuple[bytes, bytes]:
    return signed.body, signed.signature
