"""Whatever the order, the splits, the duplicates and the partitions: the same records make the same ledger, byte for
byte."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finode.ledger.envelopes import recall, verify
from finode.ledger.merging import merge
from finode.ledger.reconcile import Comparison, answer
from finode.ledger.records import Verified, VerifiedReceipt, VerifiedStatement
from finode.ledger.store import Ledger
from finode.wire.receipts import CoSignature
from finode.wire.reconciliation import Envelope
from tests.ledger.making import (
    DEALER,
    FIRST,
    MEMBERS,
    QUERIER,
    SECOND,
    order_of,
    signed_receipt,
    verified_deployment,
    verified_proof,
    verified_receipt,
    verified_statement,
)


def with_lower_signature(record: VerifiedReceipt, position: int, byte: int) -> VerifiedReceipt:
    """Return a receipt as it would be had its signer made another valid signature, as a key's owner can: no ledger
    looks at a signature that was verified before."""
    signatures = list(record.signed.signatures)
    one = signatures[position]
    signatures[position] = CoSignature(peer=one.peer, signature=bytes([byte]) + one.signature[1:])
    return dataclasses.replace(record, signed=dataclasses.replace(record.signed, signatures=tuple(signatures)))


def with_order(number: int, created_ms: int) -> VerifiedReceipt:
    receipt = verified_receipt(number).receipt
    verified = verify(signed_receipt(receipt, order=order_of(receipt, created_ms=created_ms)))
    assert isinstance(verified, VerifiedReceipt)
    return verified


POOL: tuple[Verified, ...] = (
    verified_receipt(0),
    verified_receipt(0, (FIRST,)),
    verified_receipt(0, (SECOND, QUERIER)),
    with_lower_signature(verified_receipt(0), 0, 0),
    with_lower_signature(verified_receipt(0), 1, 255),
    with_lower_signature(verified_receipt(0), 2, 1),
    with_order(0, 5),
    with_order(0, 1 << 50),
    # Contradictions: two and three bodies of one session, by some of the same signers.
    verified_receipt(1, (FIRST, DEALER)),
    verified_receipt(1, (FIRST, SECOND), count=3),
    verified_receipt(1, MEMBERS, count=4),
    with_lower_signature(verified_receipt(1, (FIRST, DEALER)), 0, 0),
    verified_receipt(3700),
    verified_statement((0, 1)),
    verified_statement((2, 3)),
    verified_statement((3, 4)),
    verified_deployment(),
    verified_deployment(signed_ms=7),
    verified_deployment("other"),
    verified_proof(SECOND, 0),
    verified_proof(SECOND, 9),
    verified_proof(DEALER, 2),
)
ORDERS = st.permutations(range(len(POOL)))


def dump_of(folder: Path, name: str, batches: Sequence[Sequence[Verified]]) -> bytes:
    """Return the canonical dump of a new ledger that took these batches."""
    with closing(Ledger.open(folder / name)) as ledger:
        for batch in batches:
            ledger.add_all(batch)
        return ledger.dump()


def cut(order: Sequence[int], bounds: Sequence[int]) -> list[list[Verified]]:
    edges = [0, *sorted(bounds), len(order)]
    return [[POOL[index] for index in order[start:end]] for start, end in itertools.pairwise(edges)]


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.lists(ORDERS, min_size=2, max_size=2), st.lists(st.integers(0, len(POOL)), max_size=4), st.data())
def test_orders_splits_and_duplicates_change_nothing(
    orders: list[list[int]], bounds: list[int], data: st.DataObject
) -> None:
    again = data.draw(st.lists(st.sampled_from(range(len(POOL))), max_size=10))

    with TemporaryDirectory() as folder:
        first = dump_of(Path(folder), "first", cut(orders[0], []))
        second = dump_of(Path(folder), "second", cut([*orders[1], *again], bounds))

    assert first == second


def sync(ours: Ledger, theirs: Ledger) -> None:
    """Bring two ledgers to agree as their keepers do."""
    with ours.elements() as mine, theirs.elements() as other:
        comparison = Comparison.begin(mine)
        while comparison.request is not None:
            comparison.receive(mine, answer(other, comparison.request))
    for source, target, hashes in ((theirs, ours, comparison.fetch), (ours, theirs, comparison.push)):
        target.add_all([recalled(one) for one in source.envelopes(hashes) if one is not None])


def recalled(received: Envelope) -> Verified:
    """Return a record as it would be verified: its id follows from it."""
    record = recall(received.kind, b"", received.data)
    match record:
        case VerifiedReceipt():
            return dataclasses.replace(record, id=record.receipt.id)
        case VerifiedStatement():
            return dataclasses.replace(record, id=record.statement.id)
    return record


@pytest.mark.slow
@settings(deadline=None, max_examples=15)
@given(st.lists(st.integers(0, 2), min_size=len(POOL), max_size=len(POOL)), ORDERS)
def test_a_partition_that_heals_leaves_equal_ledgers(homes: list[int], order: list[int]) -> None:
    """Each record reaches one of three nodes alone; then they sync in a ring, twice around."""
    with TemporaryDirectory() as folder, ExitStack() as stack:
        nodes = [stack.enter_context(closing(Ledger.open(Path(folder) / str(node)))) for node in range(3)]
        for index in order:
            nodes[homes[index]].add_all([POOL[index]])
        for one, other in [(0, 1), (1, 2), (2, 0)] * 2:
            sync(nodes[one], nodes[other])

        dumps = {node.dump() for node in nodes}

        assert dumps == {dump_of(Path(folder), "all", [POOL])}


@pytest.mark.parametrize("group", [POOL[:8], POOL[16:18], POOL[19:21]], ids=["receipts", "deployments", "proofs"])
def test_merging_is_commutative_associative_and_idempotent(group: tuple[Verified, ...]) -> None:
    for one, other, third in itertools.product(group, repeat=3):
        assert merge(one, other) == merge(other, one)
        assert merge(merge(one, other), third) == merge(one, merge(other, third))
        assert merge(merge(one, other), other) == merge(one, other)
    assert all(merge(one, one) is one for one in group)


def test_two_records_are_no_versions_of_each_other() -> None:
    with pytest.raises(ValueError, match="no versions"):
        merge(verified_receipt(0), verified_receipt(1))
    with pytest.raises(ValueError, match="no versions"):
        merge(verified_receipt(0), verified_deployment())
