"""The settings of a node: flags over environment (`FINODE_...`) over `finode.toml` over defaults.

Every setting carries its unit in its name and its reason in its description; `finode init` writes them, commented,
into `finode.toml`. A nested setting in the environment is `FINODE_<SECTION>__<NAME>`.
"""

from __future__ import annotations

import ipaddress
import json
import tomllib
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict, SettingsError

from finode.errors import ConfigError

CONFIG_NAME = "finode.toml"
IDENTITY_NAME = "identity.key"
DEFAULT_HOME = Path("~/.finode")
DEFAULT_API = "127.0.0.1:7878"
DEFAULT_LISTEN = "/ip4/127.0.0.1/tcp/4001"
_FILE = "_file"


class Role(StrEnum):
    """What a node does for the federation; any combination."""

    OWNER = "owner"
    PARTY = "party"
    DEALER = "dealer"
    QUERIER = "querier"


class Trust(StrEnum):
    """Whom the node accepts: those on its roster, or anybody."""

    ROSTER = "roster"
    OPEN = "open"


class Section(BaseModel):
    """A table of `finode.toml`; an unknown key in it is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _as_list(value: object) -> object:
    """Take a list as the environment gives it: `party,dealer`, or JSON."""
    if not isinstance(value, str):
        return value
    if not value.lstrip().startswith("["):
        return [part.strip() for part in value.split(",") if part.strip()]
    try:
        parsed: object = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{value!r} is neither a,b,c nor a JSON list: {error}") from None
    return parsed


def split_host_port(value: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[IPV6]:PORT`; raise `ValueError` with the remedy otherwise."""
    host, separator, port = value.rpartition(":")
    if not separator or not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"{value!r} is not HOST:PORT, such as {DEFAULT_API}")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether an API bound to `host` can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class NodeSection(Section):
    """Who runs the node and what it does."""

    organization: str = Field(default="", max_length=64, description="the name your federation's rosters give you")
    roles: Annotated[tuple[Role, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(), description="any of owner, party, dealer, querier"
    )
    workers: int = Field(
        default=1, ge=1, le=64, description="warm worker processes; each holds torch, about 300 MB of memory"
    )
    worker_threads: int = Field(default=1, ge=1, le=256, description="threads of one worker's tensor operations")
    device: Literal["cpu", "cuda"] = Field(
        default="cpu", description="where workers compute: the processor, or an NVIDIA GPU (native engine only)"
    )
    capacity: int = Field(default=4, ge=1, le=256, description="sessions at once; beyond that the node refuses as busy")


class NetworkSection(Section):
    """Addresses and deadlines of the peer-to-peer host."""

    listen: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(DEFAULT_LISTEN,), description="multiaddresses to listen on"
    )
    announce: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(), description="addresses told to others; empty: those of the interfaces listened on"
    )
    bootstrap: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(), description="multiaddresses, ending in /p2p/PEER_ID, of nodes to join the federation through"
    )
    dial_through: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(),
        description="multiaddresses, ending in /p2p/PEER_ID, to dial instead of those that these peers announce: "
        "a tunnel, a port that is forwarded, an emulated link",
    )
    dial_timeout_s: float = Field(default=5.0, gt=0, le=60, description="deadline of one TCP dial with its handshake")
    heartbeat_interval_s: float = Field(default=2.0, gt=0, le=60, description="pause between heartbeats to each peer")
    heartbeat_timeout_s: float = Field(
        default=6.0, gt=0, le=120, description="silence after which a peer counts as frozen"
    )
    record_interval_s: float = Field(default=30.0, gt=0, le=600, description="pause between our directory records")
    record_lifetime_s: float = Field(default=120.0, gt=0, le=3600, description="expiry of a directory record")
    sync_interval_s: float = Field(
        default=30.0, gt=0, le=3600, description="pause between comparisons of the ledger with each peer"
    )

    @field_validator("bootstrap", "dial_through")
    @classmethod
    def _ends_in_peer_id(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for address in value:
            if "/p2p/" not in address:
                raise ValueError(f"{address!r} lacks the peer's id: it must end in /p2p/PEER_ID")
        return value


class FederationSection(Section):
    """Whom the node accepts."""

    name: str = Field(
        default="finode", min_length=1, max_length=64, description="nodes of other federations are refused"
    )
    trust: Trust = Field(default=Trust.ROSTER, description='"roster", or "open": anybody may join')
    roster: str = Field(default="roster.toml", description="the file of accepted peers, relative to the home")
    scheme: Literal["equal", "final_agreement", "entropy", "dawid_skene", "labelled"] = Field(
        default="dawid_skene", description="how the owners' part of a price is split between the models"
    )
    owners_part: int = Field(default=700, ge=0, le=1000, description="of a price, for the owners, per mille")
    parties_part: int = Field(default=200, ge=0, le=1000, description="of a price, for the parties, per mille")
    dealer_part: int = Field(default=100, ge=0, le=1000, description="of a price, for the dealer, per mille")
    epoch_s: int = Field(default=86400, ge=1, le=366 * 86400, description="length of an epoch; counted from 1970")
    min_queries: int = Field(
        default=50, ge=1, description="inputs of an epoch below which no sums of votes are opened: they carry over"
    )
    noise: float = Field(
        default=0.0, ge=0, le=1e6, description="deviation of the noise added to the sums on shares; 0: none"
    )
    credit_limit: int = Field(
        default=1_000_000_000, ge=0, description="micro-credits that an organization may owe before owners refuse it"
    )

    @model_validator(mode="after")
    def _parts_add_up(self) -> FederationSection:
        if (total := self.owners_part + self.parties_part + self.dealer_part) != 1000:
            raise ValueError(f"owners_part, parties_part and dealer_part add up to {total}, they must make 1000")
        return self


class OwnerSection(Section):
    """What an owner allows to be done with its models. Organization names are those of its roster."""

    allow_parties: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(), description="organizations that may hold shares; empty: all on the roster"
    )
    allow_dealers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(), description="organizations that may deal; empty: all on the roster"
    )
    require_party: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(), description="at least one of these organizations must be a party; empty: no such demand"
    )
    allow_queriers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(), description="organizations that may query; empty: all on the roster"
    )
    queries_per_day: int = Field(default=100_000, ge=0, description="inputs per querier and day (UTC)")
    reveal_at_most: Literal["probabilities", "top1", "label"] = Field(
        default="probabilities", description="the most that a querier may see"
    )


class PartySection(Section):
    """What a computing party offers."""

    deployment_space_mb: int = Field(
        default=4096, ge=1, description="disk for weight shares; the least recently used go first"
    )
    max_batch: int = Field(default=256, ge=1, le=4096, description="most inputs of one session")
    price: int = Field(default=0, ge=0, description="micro-credits per input")
    pool_bundles: int = Field(
        default=4, ge=0, le=256, description="bundles of one committee kept for queries to come; 0: none"
    )
    pool_memory_mb: int = Field(
        default=2048,
        ge=1,
        description="memory for bundles kept for queries to come, counted as their runs will need it",
    )
    feedback_window_s: float = Field(
        default=86400.0,
        ge=0,
        le=31 * 86400,
        description="how long the votes of a session are kept, as shares in memory, for labels that come later; 0: not",
    )
    session_memory_mb: int = Field(
        default=1024, ge=16, description="memory of one session; queriers cut larger batches into several"
    )


class DealerSection(Section):
    """What a dealer offers."""

    price: int = Field(default=0, ge=0, description="micro-credits per input")
    pool_bundles: int = Field(
        default=2, ge=0, le=64, description="bundles dealt ahead per committee and batch size; 0: only when asked"
    )
    pool_memory_mb: int = Field(
        default=512, ge=1, description="corrections dealt ahead and not used yet, of all committees together"
    )


class QuerierSection(Section):
    """How this node's queries are run."""

    parties: int = Field(default=2, ge=2, le=16, description="computing parties of a committee")
    deadline_s: float = Field(default=120.0, gt=0, le=3600, description="deadline of a query, its retries included")
    committee_lifetime_s: float = Field(
        default=600.0, gt=0, le=86400, description="how long a sealed committee is reused"
    )
    max_batch: int = Field(
        default=64, ge=1, le=4096, description="most inputs of one session; more are asked in several"
    )
    quota: int = Field(default=256, ge=1, description="inputs that may be asked on one committee")
    price: int = Field(default=1000, ge=0, description="micro-credits offered per input, or what is asked if more")
    max_price: int = Field(default=1_000_000, ge=0, description="most micro-credits to offer per input")
    exclude: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_as_list)] = Field(
        default=(), description="peer ids or organizations never to choose"
    )
    fractional_bits: int = Field(
        default=16, ge=8, le=16, description="fixed-point digits after the point; values must stay below 2^(28 - this)"
    )
    self_party: bool = Field(
        default=False, description="let this node be a party of its own queries where no other committee is possible"
    )
    profile: Literal["latency", "throughput"] = Field(
        default="latency", description="latency: few rounds; throughput: fewer bytes, for streams of large batches"
    )
    min_models: int = Field(default=1, ge=1, description="fewest models an answer may come from")
    copies: int = Field(default=3, ge=1, le=15, description="copies of each input in an augmented vote")
    gamma: float = Field(
        default=-1.0,
        ge=-16,
        le=16,
        description="an augmented vote weighs a model by exp(gamma times its mean distance)",
    )
    noise: float = Field(
        default=0.1, ge=0, le=10, description="of the copies, in standard deviations of the input's own values"
    )
    flip: bool = Field(
        default=True, description="make one copy of an image its mirror image; not where that means something else"
    )
    engine: Literal["native", "crypten"] = Field(
        default="native", description="engine that computes the answers; crypten is there to compare with"
    )


class SessionSection(Section):
    """Deadlines of negotiation and computation."""

    answer_timeout_s: float = Field(default=5.0, gt=0, le=600, description="deadline of one answer to a proposal")
    deploy_timeout_s: float = Field(default=60.0, gt=0, le=3600, description="deadline of handing out weight shares")
    deal_timeout_s: float = Field(default=60.0, gt=0, le=3600, description="deadline of one bundle")
    round_timeout_s: float = Field(
        default=10.0, gt=0, le=600, description="longest wait for one party's frame of one round; names that party"
    )
    cosign_pause_s: float = Field(
        default=5.0,
        gt=0,
        le=600,
        description="how long a party waits for the one before it to bring the receipt of a session together",
    )


class ApiSection(Section):
    """The local HTTP API. It takes plaintext inputs: loopback is the default."""

    bind: str = Field(default=DEFAULT_API, description="HOST:PORT; port 0 takes a free one")
    token: str = Field(default="", description="bearer token, demanded when bound elsewhere than loopback", repr=False)
    max_body_mb: int = Field(default=64, ge=1, le=1024, description="largest request")

    @field_validator("bind")
    @classmethod
    def _is_host_port(cls, value: str) -> str:
        split_host_port(value)
        return value

    @model_validator(mode="after")
    def _needs_token(self) -> ApiSection:
        if not is_loopback(split_host_port(self.bind)[0]) and not self.token:
            raise ValueError(f"bind = {self.bind!r} is not loopback: set a token (FINODE_API__TOKEN)")
        return self


class LogSection(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="the least that is logged")
    format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto: console on a terminal, else JSON"
    )


class Config(BaseSettings):
    """All settings of a node, checked. Build it with `load`."""

    model_config = SettingsConfigDict(env_prefix="FINODE_", env_nested_delimiter="__", extra="forbid", frozen=True)

    home: Path = DEFAULT_HOME
    node: NodeSection = NodeSection()
    network: NetworkSection = NetworkSection()
    federation: FederationSection = FederationSection()
    owner: OwnerSection = OwnerSection()
    party: PartySection = PartySection()
    dealer: DealerSection = DealerSection()
    querier: QuerierSection = QuerierSection()
    session: SessionSection = SessionSection()
    api: ApiSection = ApiSection()
    log: LogSection = LogSection()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        # The file's values arrive through `load`, as a source of their own between environment and defaults.
        file: Mapping[str, Any] = getattr(init_settings, "init_kwargs", {}).pop(_FILE, {})
        return init_settings, env_settings, _FileSource(settings_cls, file)

    @property
    def roster_path(self) -> Path:
        return self.home / self.federation.roster

    @property
    def identity_path(self) -> Path:
        return self.home / IDENTITY_NAME


class _FileSource(PydanticBaseSettingsSource):
    def __init__(self, settings_cls: type[BaseSettings], values: Mapping[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return dict(self._values)


def load(home: Path, flags: Mapping[str, Mapping[str, Any]] | None = None) -> Config:
    """Read the settings of `home`, with `flags` ({section: {name: value}}) on top.

    Raises `ConfigError` that names the file and the field, or the environment variable, and what it may be.
    """
    home = home.expanduser().resolve()
    path = home / CONFIG_NAME
    values: dict[str, Any] = {}
    if path.exists():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from None
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}") from None
    try:
        arguments: dict[str, Any] = {"home": home, _FILE: values, **(flags or {})}
        return Config(**arguments)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from None
    except SettingsError as error:
        raise ConfigError(f"an environment variable FINODE_... is wrong: {error}: {error.__cause__}") from None


def _explain(error: ValidationError, path: Path) -> str:
    lines = []
    for problem in error.errors(include_url=False, include_context=False):
        where = ".".join(str(part) for part in problem["loc"])
        lines.append(f"{where}: {problem['msg'].removeprefix('Value error, ')}")
    return f"the settings ({path}, FINODE_... or flags) are wrong: " + "; ".join(lines)
