"""The end of the demo: what the queries left behind, on every node, and why each organization earned what it did.

The nodes exchange no balances, only receipts and statements. Each works out its own books from them; here all are asked
for theirs, and compared. Then one more daemon starts, which knows nothing, and is asked until its books are the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import trio

from finode.client import BalanceView, Client, ExplanationView, ReceiptView, RewardsView
from finode.errors import DaemonUnavailable, FinodeError
from finode.testnet.network import POLL_S, Network, NodeState, log_hint

SETTLED_TIMEOUT_S = 60.0
"""An epoch of the demo, its opening, and gossip: some ten seconds; more on a machine that swaps."""
LATE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What one node's ledger says. `digest` is the hash of all its balances."""

    node: str
    organization: str
    receipts: int
    statements: int
    digest: str

    def equals(self, other: Books) -> bool:
        mine = (self.receipts, self.statements, self.digest)
        return mine == (other.receipts, other.statements, other.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why an organization earned something in one role: the amount, of how many receipts, and what the ledger says of
    the largest of them."""

    role: str
    amount: int
    receipts: int
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settlement:
    """The books of all nodes, those of a node that started late, and what is in them."""

    books: tuple[Books, ...]
    late: Books
    late_s: float
    rewards: RewardsView = field(repr=False)
    receipts: tuple[ReceiptView, ...] = field(repr=False)
    reasons: dict[str, tuple[Reason, ...]] = field(repr=False)

    @property
    def equal(self) -> bool:
        """Whether every node that took part has the same books."""
        return all(book.equals(self.books[0]) for book in self.books)

    @property
    def balances(self) -> tuple[BalanceView, ...]:
        return self.rewards.balances

    @property
    def late_equal(self) -> bool:
        return self.late.equals(self.books[0])

    @property
    def holds(self) -> bool:
        """Whether all is paid, nothing was lost on the way, and all books are equal."""
        adds_up = self.rewards.paid_in == self.rewards.paid_out + self.rewards.pending
        return adds_up and self.rewards.pending == 0 and self.equal and self.late_equal


Step = Callable[[str, int, int], None]
"""What was done last, `done` of `total`."""


async def settle(network: Network, late_node: str, receipts: int, step: Step) -> Settlement:
    """Wait until `receipts` receipts are settled and known everywhere, start `late_node`, and compare all books.

    Raises `DaemonUnavailable` if the receipts are not there, or not settled, in time.
    """
    nodes = network.nodes
    step("waiting for receipts and for the end of the epoch", 0, len(nodes) + 1)
    await _settled(nodes[0], receipts)
    books: list[Books] = []
    for node in nodes:
        books.append(await same_books(node, books[0] if books else None, SETTLED_TIMEOUT_S))
        step(f"{node.organization} has {books[-1].receipts} receipts", len(books), len(nodes) + 1)
    began = time.monotonic()
    late = network.start_later(late_node)
    late_books = await same_books(late, books[0], LATE_TIMEOUT_S)
    late_s = time.monotonic() - began
    step(f"{late.organization} started late and has {late_books.receipts}", len(nodes) + 1, len(nodes) + 1)
    async with Client(home=nodes[0].home) as client:
        rewards = await client.rewards()
        found = await client.receipts(limit=receipts)
        reasons = {
            balance.organization: _reasons(await client.explain(balance.organization)) for balance in rewards.balances
        }
    return Settlement(
        books=tuple(books), late=late_books, late_s=late_s, rewards=rewards, receipts=found, reasons=reasons
    )


async def _settled(node: NodeState, receipts: int) -> None:
    state = "no answer"
    with trio.move_on_after(SETTLED_TIMEOUT_S):
        async with Client(home=node.home) as client:
            while True:
                rewards = await client.rewards()
                state = f"{rewards.receipts} receipts, {rewards.pending} micro-credits pending"
                if rewards.receipts >= receipts and not rewards.pending:
                    return
                await trio.sleep(POLL_S)
    raise DaemonUnavailable(
        f"after {SETTLED_TIMEOUT_S:.0f} s node {node.name!r} has {state}, {receipts} settled receipts were expected",
        hint=log_hint(node),
    )


async def same_books(node: NodeState, expected: Books | None, timeout_s: float) -> Books:
    """Return a node's books, as soon as they are `expected` or the time is up."""
    books: Books | None = None
    with trio.move_on_after(timeout_s):
        while books is None or (expected is not None and not books.equals(expected)):
            try:
                async with Client(home=node.home) as client:
                    rewards = await client.rewards()
            except FinodeError:  # it is starting
                await trio.sleep(POLL_S)
                continue
            books = Books(
                node=node.name,
                organization=node.organization,
                receipts=rewards.receipts,
                statements=rewards.statements,
                digest=rewards.digest,
            )
            if expected is None or books.equals(expected):
                return books
            await trio.sleep(POLL_S)
    if books is None:
        raise DaemonUnavailable(f"node {node.name!r} did not answer within {timeout_s:.0f} s", hint=log_hint(node))
    return books


def _reasons(explanation: ExplanationView) -> tuple[Reason, ...]:
    """Sum up an explanation by role, the largest amount first."""
    roles = dict.fromkeys(entry.role for entry in explanation.amounts)
    by_role = {role: [entry for entry in explanation.amounts if entry.role == role] for role in roles}
    found = []
    for role, entries in by_role.items():
        largest = max(entries, key=lambda entry: (abs(entry.amount), entry.receipt))
        amount = sum(entry.amount for entry in entries)
        found.append(Reason(role=role, amount=amount, receipts=len(entries), why=largest.why))
    return tuple(sorted(found, key=lambda reason: (-reason.amount, reason.role)))
