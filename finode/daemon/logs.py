"""Logging: readable lines on a terminal, JSON lines otherwise, and never a secret.

`session` and `peer` are bound with structlog's context variables (`structlog.contextvars.bound_contextvars`), so
every line of a task names what it works on. The last step before a line is written takes out what must not be in it:

1. A value under a name that speaks of a secret (`share`, `seed`, `key`, `token`, ...) becomes `[redacted]`.
2. Bytes and arrays, under any name, become their size: a share is uniform, so nothing else of it is of use to a log.
3. Any other object that is not plain data becomes its type's name: a message's repr would show the bytes inside it.
4. Tracebacks are printed without local variables, which the pretty printers show by default.

The standard library's loggers (of hypercorn, and of anybody else from warnings up) come out of the same renderer.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from enum import Enum
from pathlib import PurePath
from typing import Any, Literal, TextIO

import structlog
from structlog.typing import FilteringBoundLogger, Processor

REDACTED = "[redacted]"
MAX_TEXT = 2000  # characters of one value: a peer's words must not fill the disk
MAX_ITEMS = 64
MAX_DEPTH = 6
_SECRET_WORDS = frozenset(
    {"share", "shares", "seed", "seeds", "key", "keys", "token", "tokens", "secret", "secrets", "mask", "masks"}
    | {"password", "authorization", "credential", "credentials"}
)
_QUIET = ("libp2p", "multiaddr", "asyncio", "httpx", "httpcore", "hypercorn.access")


def configure(
    level: Literal["debug", "info", "warning", "error"],
    format: Literal["auto", "console", "json"],
    stream: TextIO | None = None,
) -> FilteringBoundLogger:
    """Set up logging for this process, and return the daemon's logger. `stream` is standard error by default."""
    out = stream if stream is not None else sys.stderr
    console = out.isatty() if format == "auto" else format == "console"
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        redact,
    ]
    ending: list[Processor]
    if console:
        # The plain formatter: the rich one prints the local variables of every frame.
        ending = [
            structlog.dev.ConsoleRenderer(
                colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback, sort_keys=False
            )
        ]
    else:
        ending = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    structlog.configure(
        processors=[*shared, *ending],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *ending],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]  # one handler, before libp2p calls basicConfig and adds its own
    root.setLevel(max(threshold, logging.WARNING))
    for name in _QUIET:
        # They log what a stranger sends them, as raw lines; our own code logs what matters of it.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logger: FilteringBoundLogger = structlog.get_logger()
    return logger


def redact(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Take secrets out of one line; see the top of this module."""
    for name, value in list(event.items()):
        if name not in ("exc_info", "_record", "_from_structlog"):
            event[name] = _clean(name, value, MAX_DEPTH)
    return event


def _clean(name: str, value: object, depth: int) -> object:
    if _speaks_of_secret(name) and value is not None and not isinstance(value, bool):
        return REDACTED
    return _plain(value, depth)


def _plain(value: object, depth: int) -> object:
    match value:
        case None | bool() | int() | float():
            return value
        case Enum():
            return _plain(value.value, depth)
        case str():
            return value if len(value) <= MAX_TEXT else f"{value[:MAX_TEXT]}... ({len(value)} characters)"
        case PurePath():
            return str(value)
        case BaseException():
            return _plain(f"{type(value).__name__}: {value}", depth)
        case bytes() | bytearray() | memoryview():
            return f"[{memoryview(value).nbytes} bytes]"
    if depth == 0:
        return f"[{type(value).__name__}]"
    match value:
        case Mapping():
            items = list(value.items())[:MAX_ITEMS]
            return {_text(key): _clean(_text(key), item, depth - 1) for key, item in items}
        case list() | tuple() | set() | frozenset():
            return [_plain(item, depth - 1) for item in list(value)[:MAX_ITEMS]]
    return f"[{type(value).__name__}]"


def _text(key: object) -> str:
    plain = _plain(key, 0)
    return plain if isinstance(plain, str) else str(plain)


def _speaks_of_secret(name: str) -> bool:
    words = re.split(r"[^a-z]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    return not _SECRET_WORDS.isdisjoint(words)
