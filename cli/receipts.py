"""`finode receipts list | show | verify | export`: what the ledger holds, and whether a file of it is true."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from .options import epoch_option, home_option, json_option
from .output import (
    credits_text,
    print_fields,
    print_json,
    print_table,
    range_text,
    seconds_text,
    short_hash,
    short_peer,
    size_text,
    time_text,
)

if TYPE_CHECKING:
    from finode.client import ReceiptView
    from finode.daemon.receipts import FileReport

SHOWN_PROBLEMS = 20
_file = click.Path(path_type=Path, dir_okay=False)


@click.group()
def receipts() -> None:
    """List, show, verify and export the receipts of sessions."""


@receipts.command("list")
@epoch_option
@click.option(
    "--limit", type=click.IntRange(1, 1000), default=20, show_default=True, help="The most to list, latest first."
)
@home_option
@json_option
def list_(epoch: int | None, limit: int, home: Path | None, as_json: bool) -> None:
    """List the receipts of the ledger, the latest first."""
    from finode.client import Client

    async def ask() -> tuple[ReceiptView, ...]:
        async with Client(home=home) as client:
            return await client.receipts(epoch, limit)

    found = anyio.run(ask)
    if as_json:
        print_json(found)
        return
    print_table(
        ("receipt", "ended", "service", ">inputs", ">credits", "signed", "state"),
        (
            (
                short_hash(receipt.id),
                time_text(receipt.ended),
                receipt.service,
                receipt.count,
                credits_text(receipt.price),
                f"{len(receipt.signers)}/{len(receipt.signers) + len(receipt.withheld)}",
                _state(receipt)[0],
            )
            for receipt in found
        ),
        empty="no receipts" if epoch is None else f"no receipts of epoch {epoch}",
    )


@receipts.command()
@click.argument("id", metavar="ID")
@home_option
@json_option
def show(id: str, home: Path | None, as_json: bool) -> None:
    """Show one receipt: its members, their work, who signed. ID is a receipt's or a session's, or its first digits."""
    from finode.client import Client

    async def ask() -> ReceiptView:
        async with Client(home=home) as client:
            return await client.receipt(id)

    found = anyio.run(ask)
    if as_json:
        print_json(found)
        return
    _print_receipt(found)


@receipts.command()
@click.argument("file", type=_file)
@json_option
def verify(file: Path, as_json: bool) -> int:
    """Verify every record of an export. Needs no daemon, no home and no network; status 1 if anything is wrong."""
    from finode.daemon.receipts import verify_file

    report = verify_file(file)
    if as_json:
        print_json(report)
    else:
        _print_report(report)
    return 1 if report.problems else 0


@receipts.command()
@epoch_option
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@home_option
@click.argument("file", type=_file)
def export(epoch: int | None, force: bool, home: Path | None, file: Path) -> None:
    """Write the ledger's records to FILE, for `finode receipts verify`; of one epoch, or all."""
    from finode.client import Client
    from finode.daemon.receipts import require_new, save_export

    async def ask() -> bytes:
        async with Client(home=home) as client:
            return await client.export_receipts(epoch)

    require_new(file, force)
    data = anyio.run(ask)
    save_export(file, data, force=force)
    click.echo(f"wrote {file}, {size_text(len(data))}; `finode receipts verify {file}` checks it")


def _print_receipt(receipt: ReceiptView) -> None:
    names = {work.peer: work.organization for work in receipt.work} | {receipt.querier: receipt.organization}
    fields: list[tuple[str, object]] = [
        ("receipt", receipt.id),
        ("session", receipt.session),
        ("outcome", f"{receipt.outcome}: {_named(receipt.verdict, names)}" if receipt.verdict else receipt.outcome),
        ("service", f"{receipt.service}, {receipt.count} inputs, vote {receipt.vote}, revealed {receipt.reveal}"),
        ("engine", receipt.engine),
        ("ended", f"{time_text(receipt.ended)}, after {seconds_text(receipt.ended - receipt.started)}"),
        ("epoch", receipt.epoch),
        ("price", f"{credits_text(receipt.price)} credits, by the scheme {receipt.scheme}"),
        ("owners' part", _state(receipt)[1]),
        ("committee", receipt.committee),
        ("sealed", receipt.sealed),
        ("transcript", receipt.transcript or "none: nothing was opened"),
        ("signed by", _all_of(len(receipt.signers), len(receipt.withheld))),
        ("withheld by", "\n".join(short_peer(peer, names.get(peer, "")) for peer in receipt.withheld) or "nobody"),
    ]
    print_fields(fields)
    print_table(
        ("role", "member", "signed", ">rounds", ">sent", ">bundle", ">time"), _members(receipt), empty="no members"
    )
    print_table(
        ("model", "owner", "deployment", "signed by its owner"),
        (
            (
                short_hash(model.version),
                short_peer(model.owner, model.organization),
                short_hash(model.deployment),
                "yes" if model.signed else "no: not in the ledger",
            )
            for model in receipt.models
        ),
        empty="no models",
    )


def _named(verdict: str, names: dict[str, str]) -> str:
    """Return a verdict with its culprit as people know it."""
    for peer, organization in names.items():
        verdict = verdict.replace(peer, short_peer(peer, organization))
    return verdict


def _state(receipt: ReceiptView) -> tuple[str, str]:
    """Return what became of the owners' part of the price, in a word and in more of them."""
    working = {*receipt.parties, receipt.dealer}
    if receipt.outcome == "aborted":
        return "aborted", "not due: the session was aborted"
    if 2 * len(working.intersection(receipt.signers)) <= len(working):
        return "unpaid", "not due: no more than half of the parties and the dealer signed"
    if not receipt.settled:
        return "pending", "pending, until the sums of its epoch are opened"
    return "settled", "paid out"


def _members(receipt: ReceiptView) -> Iterator[tuple[object, ...]]:
    signed = {peer: "yes" for peer in receipt.signers} | {peer: "no" for peer in receipt.withheld}
    yield (
        "querier",
        _member(receipt.querier, receipt.organization),
        signed.get(receipt.querier, "no"),
        *("-" for _ in range(4)),
    )
    for work in receipt.work:
        computes = work.role == "party"
        yield (
            f"party {receipt.parties.index(work.peer)}" if computes else work.role,
            _member(work.peer, work.organization),
            signed.get(work.peer, "no"),
            work.rounds if computes else "-",
            size_text(work.bytes_sent) if computes else "-",
            size_text(work.bundle_bytes),
            f"{work.seconds:.3f} s",
        )


def _member(peer: str, organization: str) -> str:
    return f"{organization}\n{short_peer(peer)}" if organization else short_peer(peer)


def _all_of(signed: int, withheld: int) -> str:
    return f"all {signed} members" if not withheld else f"{signed} of {signed + withheld} members"


def _print_report(report: FileReport) -> None:
    print_fields(
        [
            ("file", report.file),
            ("federation", ", ".join(report.federations) or "-"),
            ("epochs", range_text(report.epochs)),
            ("records", report.records),
            ("receipts", f"{report.receipts}, of which {report.incomplete} lack a signature"),
            (
                "deployments",
                f"{report.deployments}; not in the file, of those that receipts name: {report.unsigned_models}",
            ),
            ("statements", report.statements),
            ("contradictions", report.proofs),
        ]
    )
    for peer in report.condemned:
        click.echo(f"{peer} signed two different records of one session")
    for problem in report.problems[:SHOWN_PROBLEMS]:
        where = f"record {problem.number}, a {problem.kind}" if problem.number else "the file"
        click.echo(f"\n{where}, at byte {problem.offset}: {problem.problem}")
        click.echo(f"  remedy: {problem.remedy}")
    if len(report.problems) > SHOWN_PROBLEMS:
        click.echo(f"\nand {len(report.problems) - SHOWN_PROBLEMS} more; --json has them all")
    if report.problems:
        click.secho(f"\nBAD: {len(report.problems)} problems, {report.sound} records are true", fg="red")
    else:
        click.secho(f"\nall {report.sound} records are true", fg="green")
