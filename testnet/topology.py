"""What a testnet consists of, read from a TOML file.

    federation = "testnet"

    [settings.session]            # for every node: sections and settings of finode.toml
    round_timeout_s = 5

    [[node]]
    name = "north"                # its home is DIR/north
    organization = "North Hospital"
    roles = ["owner", "party"]

    [node.settings.owner]         # for this node, over those for every node
    require_party = ["North Hospital"]

    [[node.model]]                # what `finode models add` takes; files relative to the topology's
    path = "model.onnx"
    service = "digits"
    labels = "labels.txt"

Everything is checked here, settings included, so that a mistake is named before a process starts.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from finode.config import Config, Role
from finode.errors import ConfigError

DEFAULT_NAME = "testnet.toml"
MAX_NODES = 32
"""Each node's worker holds torch, about 300 MB."""

# What the testnet sets itself, because the nodes' addresses and homes follow from it.
_OURS = {
    "node": {"organization", "roles"},
    "network": {"listen", "announce", "bootstrap", "dial_through"},
    "federation": {"name", "trust", "roster"},
    "api": {"bind", "token"},
}

Settings = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A model that a node registers before it starts."""

    path: Path
    service: str
    labels: Path | None = None
    preprocess: Path | None = None
    calibration: Path | None = None
    counts: Path | None = None
    price: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSpec:
    """One node. `settings` are those of its `finode.toml` that the topology sets, by section."""

    name: str
    organization: str
    roles: tuple[Role, ...]
    settings: Settings = field(default_factory=dict)
    models: tuple[ModelFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The nodes of one federation; the first two are the others' bootstrap peers."""

    federation: str
    nodes: tuple[NodeSpec, ...]

    def with_role(self, role: Role) -> tuple[NodeSpec, ...]:
        """Return the nodes that have `role`, in the topology's order."""
        return tuple(node for node in self.nodes if role in node.roles)


def load_topology(path: Path) -> Topology:
    """Read a topology; raise `ConfigError` that names the file, the node and the field."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"cannot read the topology {path}: {reason}") from None
    return parse_topology(text, path)


def default_topology() -> Topology:
    """Return the topology that comes with finode: six organizations."""
    text = resources.files("finode.testnet").joinpath(DEFAULT_NAME).read_text(encoding="utf-8")
    return parse_topology(text, Path(DEFAULT_NAME))


def parse_topology(text: str, path: Path) -> Topology:
    """Return the topology of a TOML text; `path` is named in errors, and model files are relative to it."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"the topology {path} is not valid TOML: {error}") from None
    try:
        found = _TopologyTable.model_validate(table)
    except ValidationError as error:
        raise ConfigError(f"the topology {path} is wrong: {_explain(error, table)}") from None
    return Topology(
        federation=found.federation,
        nodes=tuple(_node(node, found.settings, path.parent) for node in found.node),
    )


def _node(node: _NodeTable, common: Settings, folder: Path) -> NodeSpec:
    sections = {*common, *node.settings}
    return NodeSpec(
        name=node.name,
        organization=node.organization,
        roles=node.roles,
        settings={name: {**common.get(name, {}), **node.settings.get(name, {})} for name in sorted(sections)},
        models=tuple(
            ModelFile(
                path=folder / model.path,
                service=model.service,
                labels=folder / model.labels if model.labels else None,
                preprocess=folder / model.preprocess if model.preprocess else None,
                calibration=folder / model.calibration if model.calibration else None,
                price=model.price,
            )
            for model in node.model
        ),
    )


def _checked_settings(settings: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    for section, values in settings.items():
        known = Config.model_fields.get(section)
        kind = known.annotation if known is not None else None
        if not (isinstance(kind, type) and issubclass(kind, BaseModel)):
            raise ValueError(f"finode.toml has no section [{section}]")
        if ours := sorted(_OURS.get(section, set()) & set(values)):
            raise ValueError(f"[{section}] {ours[0]} is set by the testnet itself")
        try:
            kind.model_validate(values)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join([section, *(str(part) for part in problem["loc"])])
            raise ValueError(f"{where}: {problem['msg'].removeprefix('Value error, ')}") from None
    return settings


_Settings = Annotated[dict[str, dict[str, Any]], AfterValidator(_checked_settings)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _ModelTable(_Table):
    path: str
    service: str
    labels: str = ""
    preprocess: str = ""
    calibration: str = ""
    price: int = Field(default=0, ge=0)


class _NodeTable(_Table):
    # It becomes a folder's name.
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$")
    organization: str = Field(min_length=1, max_length=64)
    roles: tuple[Role, ...] = Field(min_length=1)
    settings: _Settings = {}
    model: tuple[_ModelTable, ...] = ()

    @model_validator(mode="after")
    def _only_owners_have_models(self) -> _NodeTable:
        if self.model and Role.OWNER not in self.roles:
            raise ValueError("it has models but not the role owner")
        return self


class _TopologyTable(_Table):
    federation: str = Field(default="testnet", min_length=1, max_length=64)
    settings: _Settings = {}
    node: tuple[_NodeTable, ...]

    @model_validator(mode="after")
    def _nodes_fit(self) -> _TopologyTable:
        if not 2 <= len(self.node) <= MAX_NODES:
            raise ValueError(f"a topology has 2 to {MAX_NODES} nodes ([[node]]), this one {len(self.node)}")
        names = [node.name.lower() for node in self.node]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two nodes are called {twice[0]!r}")
        return self


def _explain(error: ValidationError, table: Mapping[str, Any]) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        parts = list(problem["loc"])
        where = ""
        if parts[:1] == ["node"] and len(parts) > 1 and isinstance(parts[1], int):
            entry = table["node"][parts[1]]
            name = entry.get("name") if isinstance(entry, dict) else None
            where = f"node {name!r}" if isinstance(name, str) else f"[[node]] number {parts[1] + 1}"
            parts = parts[2:]
        field_name = ".".join(str(part) for part in parts)
        place = ", ".join(part for part in (where, field_name) if part)
        message = problem["msg"].removeprefix("Value error, ")
        lines.append(f"{place}: {message}" if place else message)
    return "; ".join(lines)
