"""Lanes between parties: /finode/session/1.

A lane is one stream per pair of parties and committee; the party of lower index opens it. All sessions of the
committee run over it. After JoinLane and LaneJoined it carries raw frames, each of them one round of one session:

    session id (16 bytes) | round (u32, big-endian) | the engine's payload

and `shares.Failed` when a session ends early.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from finode.wire.message import Message, check_id, register

PROTOCOL = "/finode/session/1"
ROUND_HEADER = struct.Struct(">16sI")
KEY_BYTES = 32


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class JoinLane(Message):
    """Lower party -> higher party: `key` is its half of the pair's zero-sharing key, which the dealer lacks.

    `contribution` is its part of the nonce that only the committee's parties know, the same to all of them.
    """

    code: ClassVar[int] = 80

    committee: bytes
    key: bytes
    contribution: bytes

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check_id(self.key, KEY_BYTES, "key")
        check_id(self.contribution, KEY_BYTES, "contribution")

    def __repr__(self) -> str:
        return f"JoinLane({self.committee.hex()[:12]})"


@register
@dataclass(frozen=True, slots=True, kw_only=True)
class LaneJoined(Message):
    """Higher party -> lower party: the other half of the key, and its contribution to the parties' nonce."""

    code: ClassVar[int] = 81

    committee: bytes
    key: bytes
    contribution: bytes

    def __post_init__(self) -> None:
        check_id(self.committee, 32, "committee")
        check_id(self.key, KEY_BYTES, "key")
        check_id(self.contribution, KEY_BYTES, "contribution")

    def __repr__(self) -> str:
        return f"LaneJoined({self.committee.hex()[:12]})"
