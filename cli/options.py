"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path

import click

home_option = click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="FINODE_HOME",
    show_envvar=True,
    help="The node's directory; ~/.finode if none is given.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, with full ids.")
epoch_option = click.option("--epoch", type=click.IntRange(min=0), metavar="N", help="Of this epoch only.")


def resolved(home: Path | None) -> Path:
    """Return the home that a command works on."""
    from finode.client.address import home_path

    return home_path(home)
