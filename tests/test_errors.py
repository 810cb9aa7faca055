"""The tree of errors: its docstring is true, codes are unique, and what crosses the API comes back as its class."""

from __future__ import annotations

import re

import pytest

from finode import errors
from finode.errors import FinodeError, PeerRefused, SessionAborted, TooFewParties, error_class

CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, FinodeError)]


def drawn_tree() -> dict[str, str]:
    """Return class -> parent as the module's docstring draws it."""
    assert errors.__doc__ is not None
    parents: dict[str, str] = {}
    path: list[tuple[int, str]] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"^( {4}[|' ]*(?:- ?)?)([A-Z]\w+)(?:\s{2,}|$)", line)
        if not found:
            continue
        depth, name = len(found.group(1)), found.group(2)
        path = [(other, parent) for other, parent in path if other < depth]
        if path:
            parents[name] = path[-1][1]
        path.append((depth, name))
    return parents


def test_the_docstring_draws_the_tree() -> None:
    real = {cls.__name__: cls.__bases__[0].__name__ for cls in CLASSES if cls is not FinodeError}

    assert drawn_tree() == real


@pytest.mark.parametrize("cls", CLASSES)
def test_a_code_names_one_class(cls: type[FinodeError]) -> None:
    assert error_class(cls.code) is cls
    assert re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.code)
    assert cls.__doc__


def test_codes_are_kebab_case() -> None:
    assert TooFewParties.code == "too-few-parties"
    assert FinodeError.code == "finode-error"


def test_an_unknown_code_is_still_an_error() -> None:
    assert error_class("from-the-future") is FinodeError


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_says_what_happened_and_what_to_do(cls: type[FinodeError]) -> None:
    assert str(cls("it broke", hint="mend it")) == "it broke (mend it)"
    assert str(cls("it broke")) == "it broke"


def test_errors_carry_what_their_handlers_need() -> None:
    refused = PeerRefused("no", peer="12D3KooW", reason="busy")
    aborted = SessionAborted("lost", culprit="12D3KooW", round=3)

    assert (refused.peer, refused.reason) == ("12D3KooW", "busy")
    assert (aborted.culprit, aborted.round) == ("12D3KooW", 3)
    assert (SessionAborted("x").culprit, SessionAborted("x").round) == ("", -1)
