"""`finode rewards`, `finode rewards explain`: who paid and earned what, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import click

from .options import epoch_option, home_option, json_option
from .output import (
    credits_decimals,
    credits_text,
    print_fields,
    print_json,
    print_table,
    range_text,
    short_hash,
    short_peer,
    warn,
)

if TYPE_CHECKING:
    from finode.client import BalanceView, ExplanationView, RewardsView

_TABLE_DIGITS = 9
"""Most characters of an amount in the table of balances: five of them stand beside a name in 80 columns."""


@click.group(invoke_without_command=True)
@epoch_option
@home_option
@json_option
@click.pass_context
def rewards(context: click.Context, epoch: int | None, home: Path | None, as_json: bool) -> None:
    """Show what every organization paid and earned, in credits."""
    from finode.client import Client

    context.obj = (epoch, home, as_json)
    if context.invoked_subcommand is not None:
        return

    async def ask() -> RewardsView:
        async with Client(home=home) as client:
            return await client.rewards(epoch)

    found = anyio.run(ask)
    if as_json:
        print_json(found)
        return
    _print_rewards(found)


@rewards.command()
@click.argument("organization", metavar="ORG")
@epoch_option
@home_option
@json_option
@click.pass_obj
def explain(
    outer: tuple[int | None, Path | None, bool],
    organization: str,
    epoch: int | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Show why ORG (an organization or a peer id) has its balance: every amount, by receipt."""
    from finode.client import Client

    epoch, home, as_json = epoch if epoch is not None else outer[0], home or outer[1], as_json or outer[2]

    async def ask() -> ExplanationView:
        async with Client(home=home) as client:
            return await client.explain(organization, epoch)

    found = anyio.run(ask)
    if as_json:
        print_json(found)
        return
    print_table(
        ("receipt", "epoch", "role", ">credits", "why"),
        ((short_hash(one.receipt), one.epoch, one.role, credits_text(one.amount, 6), one.why) for one in found.amounts),
        empty="no amounts",
    )
    of = "balance" if epoch is None else f"in epoch {epoch}"
    click.echo(f"{found.organization}: {of} {credits_text(found.balance, 6)} credits, {len(found.amounts)} amounts")
    if sum(one.amount for one in found.amounts) != found.balance:
        warn("the amounts do not add up to the balance: this is a bug")


def _print_rewards(found: RewardsView) -> None:
    amounts = [amount for one in found.balances for amount in _amounts(one)]
    decimals = credits_decimals(amounts, _TABLE_DIGITS)
    print_table(
        ("organization", ">balance", ">paid", ">as owner", ">as party", ">as dealer"),
        (
            (
                one.organization if one.organization not in one.peers else short_peer(one.organization),
                *(credits_text(amount, decimals) if amount else "-" for amount in _amounts(one)),
            )
            for one in found.balances
        ),
        empty="no rewards yet" if found.epoch is None else f"no rewards in epoch {found.epoch}",
    )
    paid, out, pending = (credits_text(sum_, 6) for sum_ in (found.paid_in, found.paid_out, found.pending))
    missing = found.paid_in - found.paid_out - found.pending
    print_fields(
        [
            (
                "credits",
                f"paid in {paid}, paid out {out}, pending {pending}"
                if missing
                else f"paid in {paid} = paid out {out} + pending {pending}",
            ),
            ("by scheme", ", ".join(f"{name} {credits_text(sum_)}" for name, sum_ in found.schemes.items()) or "-"),
            ("epochs", range_text(found.epochs) if found.epoch is None else found.epoch),
            ("from", f"receipts: {found.receipts}, statements: {found.statements}"),
            ("digest", found.digest),
        ]
    )
    if missing:
        warn(f"{missing} micro-credits are unaccounted for: this is a bug")


def _amounts(one: BalanceView) -> tuple[int, int, int, int, int]:
    return one.balance, -one.paid, one.as_owner, one.as_party, one.as_dealer
