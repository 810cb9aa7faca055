"""The querier's signed order of a session: what a party checks before anything else of it."""

from __future__ import annotations

from finode.committee.rules import CLOCK_SKEW_MS
from finode.errors import RemoteProtocolError, WireError
from finode.node.batches import is_row_wise
from finode.wire.committee import Terms
from finode.wire.receipts import Agreed, Order
from finode.wire.shares import StartSession
from finode.wire.signed import open_signed


def count_fits(vote: str, count: int, batch: int) -> bool:
    """Whether a batch of that many inputs, copies left out, may have `count` true ones: more than half, as batches are
    filled up to the next power of two at most; all of them where rows of the answer depend on each other."""
    return batch // 2 < count <= batch if is_row_wise(vote) else count == batch


def check_order(start: StartSession, terms: Terms) -> Order:
    """Return the order that goes with a session; raise `RemoteProtocolError` if it is not the querier's for just this
    session, in this committee, on this bundle and of this many inputs."""
    try:
        order = open_signed(start.order, Order, signer=terms.querier)
    except WireError as error:
        raise RemoteProtocolError(f"the session's order: {error.message}", peer=terms.querier) from None
    if (order.session, order.committee, order.serial) != (start.session, start.committee, start.serial):
        raise RemoteProtocolError("the order is of another session", peer=terms.querier)
    if order.agreed != Agreed.by(terms).hash:
        raise RemoteProtocolError("the order is not of what the terms say", peer=terms.querier)
    if not count_fits(terms.vote, order.count, start.batch // (1 + terms.copies)):
        raise RemoteProtocolError(f"an order of {order.count} inputs for a batch of {start.batch}", peer=terms.querier)
    if not terms.created_ms - CLOCK_SKEW_MS <= order.created_ms <= terms.expires_ms + CLOCK_SKEW_MS:
        raise RemoteProtocolError("the order was not signed while its terms held", peer=terms.querier)
    return order
