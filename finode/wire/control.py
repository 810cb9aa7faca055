"""Hello and heartbeats: /finode/control/1."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from finode.wire.message import Message, check, register

PROTOCOL = "/finode/control/1"
VERSIONS: tuple[int, ...] = (1,)
"""The protocol versions that this node speaks, the newest last."""


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Hello(Message):
    """First message each way on a new connection; federation or versions that do not fit end it.

    `bulk` marks a second connection to the same peer, for weights and bundles, so that rounds do not wait behind them.
    """

    code: ClassVar[int] = 1

    federation: str
    versions: tuple[int, ...]
    agent: str
    bulk: bool = False

    def __post_init__(self) -> None:
        check(0 < len(self.versions) <= 16, "versions: 1 to 16 of them")
        check(
            len(self.federation) <= 64 and len(self.agent) <= 64,
            "federation and agent: at most 64 characters",
        )


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Goodbye(Message):
    """The connection ends: why, in words for the log, and the sender's versions when these do not fit."""

    code: ClassVar[int] = 2

    reason: str
    versions: tuple[int, ...]


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Ping(Message):
    """Are you there? `number` comes back."""

    code: ClassVar[int] = 3

    number: int


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class Pong(Message):
    """The answer to a `Ping`."""

    code: ClassVar[int] = 4

    number: int
