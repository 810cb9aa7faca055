"""`finode peers`, `finode peers trust`, `finode peers distrust`."""

from __future__ import annotations

from pathlib import Path

import anyio
import click

from .options import home_option, json_option, resolved
from .output import print_json, print_table, short_peer, warn


@click.group(invoke_without_command=True)
@home_option
@json_option
@click.pass_context
def peers(context: click.Context, home: Path | None, as_json: bool) -> None:
    """List the peers that the node knows, or change whom it trusts."""
    from finode.client import Client, PeerView

    context.obj = home
    if context.invoked_subcommand is not None:
        return

    async def ask() -> tuple[PeerView, ...]:
        async with Client(home=home) as client:
            return await client.peers()

    found = anyio.run(ask)
    if as_json:
        print_json(found)
        return
    print_table(
        ("peer", "organization", "roles", ">rtt", ">standing", ">models"),
        (
            (
                short_peer(peer.peer),
                peer.organization,
                " ".join(peer.roles),
                "-" if not peer.connected else "?" if peer.rtt_ms is None else f"{peer.rtt_ms:.1f} ms",
                f"{peer.standing:.0f}",
                peer.models,
            )
            for peer in found
        ),
        empty="no peers yet; `finode peers trust PEER_ID --org NAME` accepts one",
    )


@peers.command()
@click.argument("peer_id")
@click.option("--org", required=True, metavar="NAME", help="The organization that the peer belongs to.")
@home_option
@click.pass_obj
def trust(outer_home: Path | None, peer_id: str, org: str, home: Path | None) -> None:
    """Put a peer on this node's roster."""
    from finode.daemon.admin import trust_peer

    path = resolved(home or outer_home)
    changed = trust_peer(path, peer_id, org)
    click.echo(f"{short_peer(peer_id, org)} {'is' if changed else 'was already'} on the roster")
    if changed:
        _poke(path)


@peers.command()
@click.argument("peer_id")
@home_option
@click.pass_obj
def distrust(outer_home: Path | None, peer_id: str, home: Path | None) -> None:
    """Take a peer off this node's roster."""
    from finode.daemon.admin import distrust_peer
    from finode.errors import InputError

    path = resolved(home or outer_home)
    if not distrust_peer(path, peer_id):
        raise InputError(f"{peer_id} is not on the roster", hint="give the full peer id; see roster.toml")
    click.echo(f"{short_peer(peer_id)} is off the roster")
    _poke(path)


def _poke(home: Path) -> None:
    from finode.daemon.admin import poke
    from finode.errors import FinodeError

    try:
        if anyio.run(poke, home):
            click.echo("the running node has read it")
    except FinodeError as error:
        warn(f"the roster is changed, but the running node did not take it up: {error}")
