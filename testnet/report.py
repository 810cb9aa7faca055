"""What the testnet's commands print: progress while they work, tables when they are done.

On a terminal rich draws bars and tables. Elsewhere (a pipe, a log) there is one plain line per step and columns padded
with spaces, so that what is read later is no worse than what was seen.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn
from rich.table import Table

from finode.testnet.demo import LARGEST_DIFFERENCE, Agreement, Asked, DemoResult, Screen
from finode.testnet.network import NodeState
from finode.testnet.settlement import Books, Settlement


class PlainScreen:
    """One line for each new thing that a phase does."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last: dict[str, str] = {}

    def step(self, phase: str, detail: str, done: int, total: int) -> None:
        if self._last.get(phase) != detail:
            self._last[phase] = detail
            count = f" ({done} of {total})" if done and total > 1 else ""
            self._console.print(f"{phase}: {detail}{count}", markup=False, highlight=False, soft_wrap=True)


class BarScreen:
    """One bar for each phase."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}

    def step(self, phase: str, detail: str, done: int, total: int) -> None:
        if phase not in self._tasks:
            self._tasks[phase] = self._progress.add_task(phase, total=None, detail="")
        self._progress.update(self._tasks[phase], detail=detail, completed=done, total=total or None)


@contextmanager
def open_screen(console: Console) -> Iterator[Screen]:
    """Show progress on `console` as it can: bars on a terminal, lines elsewhere."""
    if not console.is_terminal:
        yield PlainScreen(console)
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description:<14}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield BarScreen(progress)


def print_table(console: Console, title: str, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table with a title line."""
    if console.is_terminal:
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
        for header in headers:
            table.add_column(header, overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(len(line[column]) for line in (headers, *rows)) for column in range(len(headers))]
    lines = ["", title]
    lines += ["  " + "  ".join(map(str.ljust, line, widths)).rstrip() for line in (headers, *rows)]
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def print_nodes(console: Console, nodes: Sequence[NodeState]) -> None:
    """Print who is what."""
    headers = ("node", "organization", "roles", "process", "peer id", "home")
    rows = [
        (node.name, node.organization, ", ".join(node.roles), str(node.process.pid), node.peer, str(node.home))
        for node in nodes
    ]
    print_table(console, f"{len(nodes)} nodes, and each knows all others", headers, rows)


def print_demo(console: Console, result: DemoResult) -> None:
    """Print what the demo found out."""
    federation = result.federation
    print_table(
        console,
        "The owners, each with a model of its own and an uneven part of the data",
        ("organization", "model", "samples", "of the digits 0 to 9", "right when alone"),
        [
            (
                organization,
                model.architecture,
                str(model.samples),
                " ".join(f"{count:3}" for count in model.label_counts),
                _percent(model.accuracy),
            )
            for organization, model in zip(result.owners, federation.models, strict=True)
        ],
    )
    first, agreement = result.queries[0], result.agreement
    print_table(
        console,
        f"{agreement.questions} digits that nobody trained on, asked in {len(result.queries)} queries",
        ("", "right", ""),
        [
            (
                f"plaintext {federation.vote} vote",
                _percent(federation.plaintext_accuracy()),
                "what the private one must equal",
            ),
            (f"private {federation.vote} vote", _percent(agreement.accuracy), describe_agreement(agreement)),
        ],
    )
    committee = first.answer.committee
    members = [(f"party {index}", peer) for index, peer in enumerate(committee.parties)]
    members += [("dealer", committee.dealer), *(("owner", peer) for peer in committee.owners)]
    print_table(
        console,
        f"Who served, as committee {committee.id[:16]}",
        ("seat", "organization", "peer id"),
        [(seat, committee.organizations.get(peer, ""), peer) for seat, peer in members],
    )
    print_table(
        console,
        "What it took",
        ("", *_names(result)),
        [
            (costs[0][0], *(value for _, value in costs))
            for costs in zip(*(_costs(asked) for asked in result.queries), strict=True)
        ],
    )
    alone = {organization: model.accuracy for organization, model in zip(result.owners, federation.models, strict=True)}
    print_settlement(console, result.settlement, alone)
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in result.seconds.items())
    console.print(f"\nThe whole demo: {stages}.", markup=False, highlight=False, soft_wrap=True)


def print_settlement(console: Console, settlement: Settlement, alone: Mapping[str, float]) -> None:
    """Print the receipts on every node, whether all books are equal, and why each organization earned what it did.

    `alone` is how often each owner's model is right by itself.
    """

    def say(text: str) -> None:
        console.print(text, markup=False, highlight=False, soft_wrap=True)

    def say_folded(text: str) -> None:
        width = console.width if console.is_terminal else sys.maxsize
        say(textwrap.fill(text, width, initial_indent="  ", subsequent_indent="    "))

    print_table(
        console,
        "Receipts, which all members of a session signed",
        ("receipt", "inputs", "outcome", "signed by", "withheld", "price"),
        [
            (
                receipt.id[:16],
                str(receipt.count),
                receipt.outcome,
                str(len(receipt.signers)),
                str(len(receipt.withheld)),
                _credits(receipt.price),
            )
            for receipt in settlement.receipts
        ],
    )
    print_table(
        console,
        "The books of every node, worked out by each alone",
        ("node", "organization", "receipts", "statements", "hash of all balances"),
        [_books_row(books) for books in settlement.books],
    )
    say("  balances are equal on every node" if settlement.equal else "  BALANCES DIFFER between the nodes")
    late = settlement.late
    same = "has the same books" if settlement.late_equal else f"has OTHER books: {late.receipts} receipts"
    say(f"  {late.organization}, started only now, {same} after {settlement.late_s:.1f} s")
    if console.is_terminal:
        say("")
    print_table(
        console,
        "Who paid and who earned, in credits",
        ("organization", "balance", "paid", "as owner", "as party", "as dealer"),
        [
            (
                balance.organization,
                *map(_credits, (balance.balance, -balance.paid, balance.as_owner, balance.as_party, balance.as_dealer)),
            )
            for balance in settlement.balances
        ],
    )
    rewards = settlement.rewards
    out = f"{_credits(rewards.paid_out)} paid out + {_credits(rewards.pending)} pending"
    say(f"  {_credits(rewards.paid_in)} paid in = {out}")
    say("\nWhy")
    for organization, reasons in settlement.reasons.items():
        for reason in reasons:
            of = f"{reason.receipts} receipts" if reason.receipts > 1 else "1 receipt"
            model = f"; alone its model is right on {_percent(alone[organization])}" if reason.role == "owner" else ""
            say_folded(
                f"{organization}: {_credits(reason.amount)} as {reason.role}, {of}, such as: {reason.why}{model}"
            )
    say_folded(
        "`finode rewards explain ORGANIZATION` has every amount, and `finode receipts show ID` what it follows from"
    )


def _books_row(books: Books) -> tuple[str, ...]:
    return (books.node, books.organization, str(books.receipts), str(books.statements), books.digest[:16])


def _credits(amount: int) -> str:
    """Return micro-credits as credits, to the last digit."""
    sign = "-" if amount < 0 else ""
    whole, rest = divmod(abs(amount), 1_000_000)
    return f"{sign}{whole}.{rest:06}"


def demo_json(result: DemoResult) -> dict[str, Any]:
    """Return what the demo found out, ready for JSON."""
    federation = result.federation
    return {
        "seed": result.seed,
        "holds": result.holds,
        "owners": [
            {
                "organization": organization,
                "architecture": model.architecture,
                "samples": model.samples,
                "label_counts": list(model.label_counts),
                "accuracy": model.accuracy,
            }
            for organization, model in zip(result.owners, federation.models, strict=True)
        ],
        "vote": federation.vote,
        "plaintext_accuracy": federation.plaintext_accuracy(),
        "queries": [
            {
                "agreement": {
                    "questions": asked.agreement.questions,
                    "same_labels": asked.agreement.same_labels,
                    "near_ties": asked.agreement.near_ties,
                    "wrong": asked.agreement.wrong,
                    "largest_difference": asked.agreement.largest_difference,
                },
                "accuracy": asked.agreement.accuracy,
                "committee": msgspec.to_builtins(asked.answer.committee),
                "timings": msgspec.to_builtins(asked.answer.timings),
                "traffic": msgspec.to_builtins(asked.answer.traffic),
                "engine": asked.answer.engine,
            }
            for asked in result.queries
        ],
        "settlement": {
            "equal": result.settlement.equal,
            "books": [msgspec.to_builtins(books) for books in result.settlement.books],
            "late": {**msgspec.to_builtins(result.settlement.late), "seconds": result.settlement.late_s},
            "rewards": msgspec.to_builtins(result.settlement.rewards),
            "receipts": [msgspec.to_builtins(receipt) for receipt in result.settlement.receipts],
            "reasons": {
                name: [msgspec.to_builtins(reason) for reason in reasons]
                for name, reasons in result.settlement.reasons.items()
            },
        },
        "seconds": result.seconds,
    }


def describe_agreement(agreement: Agreement) -> str:
    """Return how well a private answer fits the plaintext one, in words."""
    text = f"{agreement.same_labels} of {agreement.questions} labels as in plaintext"
    if agreement.near_ties:
        text += f", {agreement.near_ties} a near tie there"
    if agreement.wrong:
        text += f", {agreement.wrong} WRONG"
    relation = "below" if agreement.largest_difference < LARGEST_DIFFERENCE else "NOT below"
    return f"{text}; probabilities differ by {agreement.largest_difference:.1e}, {relation} {LARGEST_DIFFERENCE}"


def _costs(asked: Asked) -> list[tuple[str, str]]:
    timings, traffic = asked.answer.timings, asked.answer.traffic
    sent = " + ".join(_bytes(count) for count in traffic.bytes_sent_per_party)
    return [
        ("negotiation", f"{timings.negotiation_s:.2f} s"),
        ("deployment", f"{timings.deployment_s:.2f} s"),
        ("offline", f"{timings.offline_s:.2f} s"),
        ("online", f"{timings.online_s:.2f} s"),
        ("total", f"{timings.total_s:.2f} s"),
        ("rounds", str(traffic.rounds)),
        ("sent by the parties", sent),
        ("bundle", _bytes(traffic.offline_bytes)),
    ]


def _names(result: DemoResult) -> list[str]:
    committees = [asked.answer.committee.id for asked in result.queries]
    return [
        f"{asked.agreement.questions} digits" + ("" if committee != before else ", same committee")
        for asked, committee, before in zip(result.queries, committees, ["", *committees], strict=False)
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
