"""Logging: what must never be in a line, and how lines look."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from finode.daemon.logs import REDACTED, configure, redact


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def cleaned(**values: Any) -> dict[str, Any]:
    return dict(redact(None, "info", {"event": "x", **values}))


@pytest.mark.parametrize(
    "name",
    ["share", "input_share", "seed", "bundle-seed", "key", "zeroKeys", "TOKEN", "api_token", "secret", "mask_seeds"],
)
@pytest.mark.parametrize("value", ["abc", 7, [1, 2], {"a": 1}, b"abc", 0.5])
def test_a_value_under_a_secret_name_is_redacted(name: str, value: Any) -> None:
    assert cleaned(**{name: value})[name] == REDACTED
    assert cleaned(outer={"inner": [{name: value}]})["outer"]["inner"][0][name] == REDACTED


@dataclass
class Message:
    data: bytes


class Color(Enum):
    RED = "red"


def test_bytes_arrays_and_objects_lose_their_content() -> None:
    secret = b"\x01secret\x02"

    found = cleaned(
        a=secret,
        b=bytearray(secret),
        c=memoryview(secret),
        d=np.frombuffer(secret, np.uint8),
        e=Message(secret),
        f=[secret, {"x": (secret,)}],
        g={secret: 1},
        h=Color.RED,
        i=Path("/tmp/x"),  # noqa: S108 - a value, not used
        j=ValueError("seven"),
        k="x" * 5000,
    )

    assert "secret" not in repr(found)
    assert found["a"] == found["b"] == found["c"] == "[8 bytes]"
    assert found["e"] == "[Message]"
    assert (found["h"], found["i"], found["j"]) == ("red", "/tmp/x", "ValueError: seven")  # noqa: S108
    assert len(found["k"]) < 2100


def test_names_that_only_look_like_secrets_are_kept() -> None:
    assert cleaned(monkey="a", shareholder="b", keyed=True, peer="12D3", session="ab") == {
        "event": "x",
        "monkey": "a",
        "shareholder": "b",
        "keyed": True,
        "peer": "12D3",
        "session": "ab",
    }


def test_json_lines_carry_session_and_peer() -> None:
    out = io.StringIO()
    log = configure("info", "auto", out)

    with structlog.contextvars.bound_contextvars(session="ab12", peer="12D3KooW"):
        log.info("session: started", seed=b"\x00" * 32, rounds=7)
    log.debug("not shown")

    (line,) = [json.loads(line) for line in out.getvalue().splitlines()]
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "session: started",
        "level": "info",
        "session": "ab12",
        "peer": "12D3KooW",
        "seed": REDACTED,
        "rounds": 7,
    }


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_traceback_shows_no_local_variables(stream: type[io.StringIO]) -> None:
    out = stream()
    log = configure("info", "auto", out)

    def fail() -> None:
        hidden = "the-value-of-a-" + "local"
        raise ValueError(len(hidden))

    try:
        fail()
    except ValueError:
        log.exception("it failed")

    assert "ValueError" in out.getvalue()
    assert "the-value-of-a-local" not in out.getvalue()


def test_a_terminal_gets_readable_lines() -> None:
    out = Terminal()
    log = configure("info", "auto", out)

    log.info("node: ready", peers=3)

    assert "node: ready" in out.getvalue()
    assert not out.getvalue().startswith("{")


def test_the_standard_librarys_loggers_come_out_of_the_same_place() -> None:
    out = io.StringIO()
    configure("info", "json", out)

    logging.getLogger("hypercorn.error").warning("odd bytes from %s", "somewhere")
    logging.getLogger("hypercorn.error").info("not shown")
    logging.getLogger("libp2p.network").error("raw bytes of a stranger")
    logging.basicConfig()  # as libp2p does, in effect; must not add a second handler

    (line,) = [json.loads(line) for line in out.getvalue().splitlines()]
    assert line["event"] == "odd bytes from somewhere"
    assert (line["level"], line["logger"]) == ("warning", "hypercorn.error")


def test_errors_of_the_standard_librarys_loggers_have_a_traceback_without_locals() -> None:
    out = io.StringIO()
    configure("info", "json", out)

    try:
        raise ValueError("seven")
    except ValueError:
        logging.getLogger("hypercorn.error").exception("it failed")

    (line,) = [json.loads(line) for line in out.getvalue().splitlines()]
    assert "ValueError: seven" in line["exception"]
