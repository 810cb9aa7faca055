"""`finode init`, `finode start`, `finode id`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import home_option, json_option, resolved
from .output import print_json

ROLES = ("owner", "party", "dealer", "querier")


@click.command()
@home_option
@click.option("--org", default="", metavar="NAME", help="Your organization's name; one is made up without it.")
def init(home: Path | None, org: str) -> None:
    """Make a home: identity, settings, roster. Overwrites nothing."""
    from finode.daemon.home import init_home

    path = resolved(home)
    identity = init_home(path, org)
    click.echo(f"made the home {path}")
    click.echo(f"peer id: {identity.peer_id}")
    click.echo(f"next: read {path / 'finode.toml'}, back up {path / 'identity.key'}, then `finode start`")


@click.command()
@click.option("--role", "roles", multiple=True, type=click.Choice(ROLES), help="What the node does; may be repeated.")
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Listen here, such as /ip4/0.0.0.0/tcp/4001.")
@click.option("--bootstrap", multiple=True, metavar="MULTIADDR", help="Join through this node (.../p2p/PEER_ID).")
@click.option("--announce", multiple=True, metavar="MULTIADDR", help="Tell others to reach this node here.")
@click.option("--api", metavar="HOST:PORT", help="Where the local API listens; port 0 takes a free one.")
@home_option
@click.option("--org", metavar="NAME", help="Your organization's name.")
@click.option("--trust", type=click.Choice(("roster", "open")), help="Accept the roster's peers, or anybody.")
@click.option("--log-level", type=click.Choice(("debug", "info", "warning", "error")))
@click.option("--log-format", type=click.Choice(("auto", "console", "json")))
def start(
    roles: tuple[str, ...],
    listen: tuple[str, ...],
    bootstrap: tuple[str, ...],
    announce: tuple[str, ...],
    api: str | None,
    home: Path | None,
    org: str | None,
    trust: str | None,
    log_level: str | None,
    log_format: str | None,
) -> int:
    """Run the node in the foreground, until Ctrl-C. A home that is not there yet is made first.

    Flags come before the environment (FINODE_...), that before finode.toml, that before the defaults.
    """
    from finode.config import load
    from finode.daemon.home import init_home, is_fresh
    from finode.daemon.run import run

    given: dict[str, dict[str, Any]] = {
        "node": {"roles": roles, "organization": org},
        "network": {"listen": listen, "bootstrap": bootstrap, "announce": announce},
        "federation": {"trust": trust},
        "api": {"bind": api},
        "log": {"level": log_level, "format": log_format},
    }
    flags = {
        section: {name: value for name, value in values.items() if value not in (None, ())}
        for section, values in given.items()
    }
    path = resolved(home)
    config = load(path, flags)  # before anything is made: a wrong flag leaves no home behind
    if is_fresh(path):
        identity = init_home(path, config.node.organization, keep_config=True)
        click.echo(f"made the home {path}, peer id {identity.peer_id}", err=True)
        config = load(path, flags)
    return run(config)


@click.command("id")
@home_option
@click.option("--addresses", "with_addresses", is_flag=True, help="Print the addresses to give to others, too.")
@json_option
def show_id(home: Path | None, with_addresses: bool, as_json: bool) -> None:
    """Print the peer id; with --addresses also where the node can be reached, if it runs."""
    import anyio

    from finode.client import Client
    from finode.client.address import read_api_address
    from finode.daemon.admin import peer_id

    path = resolved(home)
    peer = peer_id(path)

    async def addresses() -> tuple[str, ...]:
        if read_api_address(path) is None:
            return ()
        async with Client(home=path) as client:
            return (await client.status()).addresses

    full = [address if "/p2p/" in address else f"{address}/p2p/{peer}" for address in anyio.run(addresses)]
    if as_json:
        print_json({"peer": peer, "addresses": full})
    else:
        click.echo("\n".join((peer, *full) if with_addresses else (peer,)))
