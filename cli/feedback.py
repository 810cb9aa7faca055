"""`finode feedback SESSION LABELS`: the true labels of a session, shared when the querier has them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import click

from .options import home_option, json_option
from .output import print_json, short_hash

if TYPE_CHECKING:
    from finode.client import Client, FeedbackView

NO_LABEL: Final = "-"
_MOST_BYTES: Final = 1 << 20  # of a file of labels: 4096 names of 256 bytes


# Labels may begin with "-", so nothing that looks like a short option is one here.
@click.command(context_settings={"ignore_unknown_options": True, "help_option_names": ["--help"]})
@click.argument("session")
@click.argument("labels")
@home_option
@json_option
def feedback(session: str, labels: str, home: Path | None, as_json: bool) -> None:
    """Share the true LABELS of the inputs of a SESSION that this node asked.

    LABELS are names of classes or their indices, in the order of the inputs, between commas; "-" for an input without
    one. @FILE takes them from a file, between commas or one a line. Nobody sees them: they are compared on shares
    with what each model voted, and only the sums of an epoch are opened.
    """
    from finode.client import Client

    words = _words(labels)

    async def ask() -> FeedbackView:
        async with Client(home=home) as client:
            full, service = await _find(client, session)
            classes = {view.name: view.classes for view in await client.services()}.get(service, ())
            return await client.feedback(full, [_index(word, classes) for word in words])

    taken = anyio.run(ask)
    if as_json:
        print_json(taken)
        return
    click.echo(f"shared {taken.labelled} labels of the {taken.count} inputs of session {short_hash(taken.session)}")


def _words(labels: str) -> list[str]:
    """Return the labels that were given, or are in the file that was."""
    from finode.errors import InputError

    if labels.startswith("@"):
        path = Path(labels[1:])
        try:
            with path.open("rb") as file:
                data = file.read(_MOST_BYTES + 1)
            labels = data.decode("utf-8").strip()
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise InputError(f"{path} is not a text in UTF-8") from None
        if len(data) > _MOST_BYTES:
            raise InputError(f"{path} is larger than {_MOST_BYTES} bytes", hint="one label a line")
    words = [word.strip() for word in re.split(r"[,\n]", labels)]
    for number, word in enumerate(words, 1):
        if not word:
            raise InputError(f"label {number} of {len(words)} is empty", hint=f'"{NO_LABEL}" is an input without one')
    return words


async def _find(client: Client, session: str) -> tuple[str, str]:
    """Return the full id and the service of a session named by its first digits: one of this node, or of a receipt."""
    from finode.errors import InputError

    asked = {
        view.session: view.service
        for view in await client.sessions()
        if view.role == "querier" and view.session.startswith(session.lower())
    }
    if len(asked) > 1:
        raise InputError(f"{len(asked)} sessions begin with {session!r}", hint="give more digits")
    if asked:
        return next(iter(asked.items()))
    receipt = await client.receipt(session)
    return receipt.session, receipt.service


def _index(word: str, classes: tuple[str, ...]) -> int:
    """Return the index of a label: a class of that name comes before the number."""
    from finode.errors import InputError

    if word == NO_LABEL:
        return -1
    if word in classes:
        return classes.index(word)
    if word.isascii() and word.isdigit() and (not classes or int(word) < len(classes)):
        return int(word)
    known = ", ".join(classes) if len(classes) <= 20 else f"{len(classes)} of them, see `finode services --json`"
    raise InputError(f"{word!r} is no class of the service", hint=f"its classes: {known or 'not known here'}")
