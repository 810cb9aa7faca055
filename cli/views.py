"""`finode status`, `finode services`, `finode ps`."""

from __future__ import annotations

from pathlib import Path

import anyio
import click

from .options import home_option, json_option
from .output import print_fields, print_json, print_table, seconds_text, shape_text, short_hash, short_peer

OUTCOME_WIDTH = 60


@click.command()
@home_option
@json_option
def status(home: Path | None, as_json: bool) -> None:
    """Say what the node is and does."""
    from finode.client import Client, StatusView

    async def ask() -> StatusView:
        async with Client(home=home) as client:
            return await client.status()

    found = anyio.run(ask)
    if as_json:
        print_json(found)
        return
    print_fields(
        [
            ("node", "ready" if found.ready else "starting"),
            ("peer id", found.peer),
            ("organization", found.organization),
            ("federation", f"{found.federation} (trust: {found.trust})"),
            ("roles", ", ".join(found.roles) or "none"),
            # `finode id` prints them with the peer id, to be given to others; here they would not fit a line.
            ("addresses", "\n".join(address.removesuffix(f"/p2p/{found.peer}") for address in found.addresses)),
            ("peers", f"{found.peers_connected} connected of {found.peers_known} known"),
            ("sessions", f"{found.sessions} of {found.capacity}"),
            ("workers", found.workers),
            ("up for", seconds_text(found.uptime_s)),
            ("version", found.version),
        ]
    )


@click.command()
@home_option
@json_option
def services(home: Path | None, as_json: bool) -> None:
    """List the services offered in the federation."""
    from finode.client import Client, ServiceView

    async def ask() -> tuple[ServiceView, ...]:
        async with Client(home=home) as client:
            return await client.services()

    found = anyio.run(ask)
    if as_json:
        print_json(found)
        return
    print_table(
        ("service", "input", ">classes", ">models", ">price", "owners"),
        (
            (
                service.name,
                shape_text(service.input.shape),
                len(service.classes),
                len(service.offers),
                sum(offer.price for offer in service.offers),
                ", ".join(dict.fromkeys(offer.organization or short_peer(offer.owner) for offer in service.offers)),
            )
            for service in found
        ),
        empty="no services are offered yet",
    )


@click.command()
@home_option
@json_option
def ps(home: Path | None, as_json: bool) -> None:
    """List the sessions that run on the node, and those that ended lately."""
    from finode.client import Client, SessionView

    async def ask() -> tuple[SessionView, ...]:
        async with Client(home=home) as client:
            return await client.sessions()

    found = anyio.run(ask)
    if as_json:
        print_json(found)
        return
    print_table(
        ("session", "service", "role", "state", ">inputs", ">time", "querier"),
        (
            (
                short_hash(session.session),
                session.service,
                session.role,
                _short(session.outcome) or (f"round {session.round}" if session.round >= 0 else session.phase),
                session.batch,
                seconds_text(session.seconds),
                short_peer(session.querier),
            )
            for session in found
        ),
        empty="no sessions",
    )


def _short(outcome: str) -> str:
    """Return an outcome that fits into a table; `--json` has all of it."""
    return outcome if len(outcome) <= OUTCOME_WIDTH else f"{outcome[: OUTCOME_WIDTH - 1]}…"
