"""Links to emulate between the nodes of a testnet: a named kind for all pairs, or a TOML matrix.

    default = "regional"               # a kind, or { rtt_ms = 10, mbit = 1000 }; "lan" if there is none

    [[link]]                           # every two of these; a later entry counts over an earlier one
    between = ["hospital", "clinic"]
    kind = "intercontinental"

    [[link]]
    between = ["bank", "clinic"]
    rtt_ms = 25                        # round trip
    mbit = 300                         # rate of each direction

A node that no entry names has the default link to all others.
"""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from finode.errors import ConfigError

MAX_RTT_MS = 10_000.0
MAX_MBIT = 100_000.0


@dataclass(frozen=True, slots=True)
class Link:
    """A link between two nodes, the same in both directions: round-trip time, and rate of each direction."""

    rtt_ms: float
    mbit: float

    @property
    def delay_s(self) -> float:
        """Seconds that a byte is under way in one direction."""
        return self.rtt_ms / 2000

    @property
    def bytes_per_s(self) -> float:
        return self.mbit * 1e6 / 8


KINDS: Final[Mapping[str, Link]] = MappingProxyType(
    {
        "lan": Link(0.3, 10_000),
        "regional": Link(10, 1_000),
        "continental": Link(40, 200),
        "intercontinental": Link(150, 100),
    }
)


@dataclass(frozen=True, slots=True)
class LinkTable:
    """The link of every pair of nodes. `name` is how the person called it."""

    name: str
    default: Link
    pairs: Mapping[frozenset[str], Link] = field(default_factory=dict)

    def between(self, one: str, other: str) -> Link:
        return self.pairs.get(frozenset((one, other)), self.default)


def load_links(value: str, nodes: Collection[str]) -> LinkTable:
    """Return the links that `--link VALUE` means: one of `KINDS`, or a TOML file about these nodes.

    Raises `ConfigError` that names the file, the entry and the field.
    """
    if (kind := KINDS.get(value)) is not None:
        return LinkTable(value, kind)
    path = Path(value)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"--link {value!r} is neither {', '.join(KINDS)} nor a file that can be read: {reason}"
        ) from None
    return parse_links(text, path, nodes)


def parse_links(text: str, path: Path, nodes: Collection[str]) -> LinkTable:
    """Return the links of a TOML text; `path` is named in errors."""
    try:
        table = _LinksTable.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the links {path} are not valid TOML: {error}") from None
    except ValidationError as error:
        raise ConfigError(f"the links {path} are wrong: {_explain(error)}") from None
    pairs: dict[frozenset[str], Link] = {}
    for number, entry in enumerate(table.link, 1):
        if unknown := sorted(set(entry.between) - set(nodes)):
            raise ConfigError(
                f"the links {path} are wrong: [[link]] number {number}, between: there is no node {unknown[0]!r}",
                hint=f"the nodes are {', '.join(sorted(nodes))}",
            )
        link = entry.link()
        pairs |= {frozenset(pair): link for pair in combinations(entry.between, 2)}
    default = KINDS[table.default] if isinstance(table.default, str) else table.default.link()
    return LinkTable(str(path), default, MappingProxyType(pairs))


class _LinkFields(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = ""
    rtt_ms: float = Field(default=-1, le=MAX_RTT_MS)
    mbit: float = Field(default=-1, le=MAX_MBIT)

    @model_validator(mode="after")
    def _is_one_or_the_other(self) -> Self:
        given = self.model_fields_set & {"rtt_ms", "mbit"}
        if self.kind and given:
            raise ValueError("give a kind, or rtt_ms and mbit, not both")
        if not self.kind and given != {"rtt_ms", "mbit"}:
            raise ValueError("give a kind, or both rtt_ms and mbit")
        if self.kind and self.kind not in KINDS:
            raise ValueError(_not_a_kind(self.kind))
        if not self.kind and (self.rtt_ms < 0 or self.mbit <= 0):
            raise ValueError("rtt_ms is at least 0, and mbit over 0")
        return self

    def link(self) -> Link:
        return KINDS[self.kind] if self.kind else Link(self.rtt_ms, self.mbit)


class _LinkEntry(_LinkFields):
    between: tuple[str, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _are_different_nodes(self) -> Self:
        if len(set(self.between)) != len(self.between):
            raise ValueError("between names a node twice")
        return self


class _LinksTable(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    default: str | _LinkFields = "lan"
    link: tuple[_LinkEntry, ...] = ()

    @model_validator(mode="after")
    def _default_is_a_kind(self) -> Self:
        if isinstance(self.default, str) and self.default not in KINDS:
            raise ValueError(f"default: {_not_a_kind(self.default)}")
        return self


def _not_a_kind(value: str) -> str:
    return f"{value!r} is none of {', '.join(KINDS)}"


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        parts = list(problem["loc"])
        if parts[:1] == ["link"] and len(parts) > 1 and isinstance(parts[1], int):
            parts = [f"[[link]] number {parts[1] + 1}", *parts[2:]]
        where = ", ".join(str(part) for part in parts if part not in ("str", "_LinkFields"))
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{where}: {message}" if where else message)
    return "; ".join(dict.fromkeys(lines))
