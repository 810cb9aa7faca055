"""What is measured, and what came out: one `Work` gives one `Row`.

The presets are the figures that the engine is held to; a sweep varies one thing and keeps the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final

from finode.testnet.links import KINDS, Link

MAX_PARTIES: Final = 5
SWEPT_PARTIES: Final = (2, 3, 4, 5)
SWEPT_BATCHES: Final = (1, 2, 4, 8, 16, 32, 64)
SWEPT_MODELS: Final = ("mlp", "small-cnn", "medium-cnn", "large-cnn", "lenet-avg", "lenet", "resnet18")
PAPER_LINKS: Final = ("lan", "continental")


def computed_by(engine: str, device: str) -> str:
    """Return an engine's name, with the device where that is not the processor."""
    return engine if device == "cpu" else f"{engine} on {device}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One query to measure: `models` models of a kind, a soft vote over them, revealed as probabilities.

    `device` is where parties and dealer compute. With the profile `throughput` a stream of such queries is measured
    too, with its dealing; with `cold` also queries for which nothing was dealt ahead.
    """

    model: str
    models: int = 1
    parties: int = 2
    batch: int = 1
    link: str = "lan"
    engine: str = "native"
    device: str = "cpu"
    profile: str = "latency"
    cold: bool = True

    @property
    def service(self) -> str:
        """The name of the service that these models are offered for."""
        return f"{self.model}-{self.models}"

    @property
    def computed_by(self) -> str:
        """The engine, and the device where that is not the processor."""
        return computed_by(self.engine, self.device)

    @property
    def sustained(self) -> bool:
        """Whether a stream of such queries is measured."""
        return self.profile == "throughput"

    def __str__(self) -> str:
        what = f"{self.models} x {self.model}" if self.models > 1 else self.model
        return f"{what}, batch {self.batch}, {self.parties} parties, {self.link}, {self.computed_by}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Where the online time of a query goes, in seconds.

    latency_s     rounds times half a round trip
    asking_s      one round trip: the input goes to the parties, the output comes back
    transfer_s    what one party sends to one other, over the link's rate
    compute_s     what the slowest party's worker computes
    rest_s        what is left: the processes between engine and socket, windows that are still small, waiting for the
                  slower of two parties
    """

    latency_s: float
    asking_s: float
    transfer_s: float
    compute_s: float
    rest_s: float

    @classmethod
    def of(cls, online_s: float, *, rounds: int, bytes_sent: int, parties: int, compute_s: float, link: Link) -> Phases:
        """Split a time; `bytes_sent` are those of one party to all others."""
        latency_s = rounds * link.delay_s
        asking_s = 2 * link.delay_s
        transfer_s = bytes_sent / (parties - 1) / link.bytes_per_s
        return cls(
            latency_s=latency_s,
            asking_s=asking_s,
            transfer_s=transfer_s,
            compute_s=compute_s,
            rest_s=online_s - latency_s - asking_s - transfer_s - compute_s,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one work took: medians over `repeats` queries on a kept committee, after a warm-up; seconds and bytes.

    A query that takes long is not repeated: its warm-up is the figure, and `note` says so.

    online_s, offline_s    what the querier's daemon reports: computing, and waiting for correlated randomness
    total_s                from the client's call to its answer
    cold_s                 the same on a committee made for the query: deployments kept, nothing dealt ahead; the
                           median of `cold_repeats`
    first_s                the first query of all, deployments included; measured once
    bytes_sent             of the busiest party, to all others; `link_bytes` is what the emulated link between two
                           parties carried for it, framing and encryption included; None of a warm-up
    offline_bytes          of the bundle, to all parties; `bundle_last` of these to the last party, `bundle_others` the
                           most to any other
    dealt_ahead            in how many of the queries a bundle was ready
    max_error              largest difference of a probability from the plaintext one, over all queries
    """

    online_s: float
    offline_s: float
    total_s: float
    cold_s: float | None
    first_s: float
    rounds: int
    bytes_sent: int
    link_bytes: int | None
    offline_bytes: int
    bundle_last: int
    bundle_others: int
    max_error: float
    repeats: int
    cold_repeats: int
    dealt_ahead: int
    images_per_s: float
    sustained_images_per_s: float | None
    load: float
    note: str
    phases: Phases


@dataclass(frozen=True, slots=True)
class Row:
    """A work with its figures, or why there are none."""

    work: Work
    figures: Figures | None
    error: str = ""


def table_preset() -> tuple[Work, ...]:
    """Return the work that the engine is held to, on both links."""
    lenets = Work(model="lenet", models=5)
    kinds = (
        lenets,
        Work(model="resnet18", cold=False),
        replace(lenets, batch=32, profile="throughput", cold=False),
        replace(lenets, parties=3, cold=False),
        replace(lenets, parties=5, cold=False),
    )
    return tuple(replace(work, link=link) for work in kinds for link in PAPER_LINKS)


def quick_preset() -> tuple[Work, ...]:
    """Return what a minute suffices for."""
    return tuple(Work(model="lenet", models=5, link=link) for link in PAPER_LINKS)


def _parties() -> tuple[Work, ...]:
    return tuple(
        Work(model="lenet", models=5, parties=parties, link=link) for parties in SWEPT_PARTIES for link in PAPER_LINKS
    )


def _batch() -> tuple[Work, ...]:
    return tuple(
        Work(model="lenet", models=5, batch=batch, link=link) for batch in SWEPT_BATCHES for link in PAPER_LINKS
    )


def _models() -> tuple[Work, ...]:
    return tuple(Work(model=model, link=link) for model in SWEPT_MODELS for link in PAPER_LINKS)


def _links() -> tuple[Work, ...]:
    return tuple(Work(model="lenet", models=5, parties=parties, link=link) for parties in (2, 3) for link in KINDS)


SWEEPS: Final[Mapping[str, Callable[[], tuple[Work, ...]]]] = MappingProxyType(
    {"parties": _parties, "batch": _batch, "models": _models, "links": _links}
)


def with_engines(works: Sequence[Work], engines: Sequence[str]) -> tuple[Work, ...]:
    """Return each work for each engine, side by side."""
    return tuple(dict.fromkeys(replace(work, engine=engine) for work in works for engine in engines))


def on_devices(works: Sequence[Work], devices: Sequence[str]) -> tuple[Work, ...]:
    """Return each work on each device, one device after the other: each needs a federation of its own.

    Only the native engine computes elsewhere than on the processor: works of another one stay there.
    """
    return tuple(
        dict.fromkeys(
            work if work.engine != "native" else replace(work, device=device) for device in devices for work in works
        )
    )
