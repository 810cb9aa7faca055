"""The group of all commands: each is loaded when it is used, so that `finode --help` is quick.

Errors end here. A `FinodeError` is one line and a hint on standard error, status 1; wrong usage is status 2; Ctrl-C is
quiet, status 130. A reader that went away (`finode peers | head`) is no error to speak of.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final

import click

from finode import __version__
from finode.errors import FinodeError

INTERRUPTED: Final = 130
# name: (module, attribute, what --help says); modules with a dot in front are of this package.
COMMANDS: Final[dict[str, tuple[str, str, str]]] = {
    "init": (".setup", "init", "Make a home: identity, settings, roster."),
    "start": (".setup", "start", "Run the node in the foreground."),
    "id": (".setup", "show_id", "Print the peer id, and the addresses if the node runs."),
    "models": (".models", "models", "Add, list, show and remove your models."),
    "peers": (".peers", "peers", "List the peers, or change whom the node trusts."),
    "services": (".views", "services", "List the services offered in the federation."),
    "query": (".query", "query", "Ask a service about an input, privately."),
    "status": (".views", "status", "Say what the node is and does."),
    "ps": (".views", "ps", "List the sessions that run on the node."),
    "receipts": (".receipts", "receipts", "List, show, verify and export receipts."),
    "rewards": (".rewards", "rewards", "Show who paid and earned what, and why."),
    "feedback": (".feedback", "feedback", "Share the true labels of a session you asked."),
    "bench": ("finode.testnet.bench.commands", "bench", "Measure private queries over emulated links."),
    "testnet": ("finode.testnet.commands", "testnet", "Run a federation of several nodes on this machine."),
}


class LazyGroup(click.Group):
    """A group that knows its commands by name and help, and imports one when it is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        found = getattr(importlib.import_module(module, __package__), attribute)
        assert isinstance(found, click.Command)  # noqa: S101 - for the type checker
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        run = super().main
        if not standalone_mode:
            return run(args, prog_name, complete_var, False, **extra)
        try:
            status = run(args, prog_name, complete_var, False, **extra)
            sys.stdout.flush()
        except FinodeError as error:
            _complain(error.message, error.hint)
            status = 1
        except click.ClickException as error:
            error.show()
            status = error.exit_code
        except (click.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        except BrokenPipeError:
            # Python flushes standard output once more at exit; there must be somebody who reads it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = 1
        sys.exit(status if isinstance(status, int) else 0)


def _complain(message: str, hint: str) -> None:
    click.secho(f"finode: error: {' '.join(message.split())}", fg="red", err=True)
    if hint:
        click.echo(f"hint: {hint}", err=True)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="finode %(version)s")
def finode() -> None:
    """Private queries to a federation of models: inputs, weights and answers stay secret-shared."""
