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


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One query to measure: `models` models of a kind, a soft vote over them, revealed as probabilities.

    `device` is where parties and dealer compute. `sustained`: measure a stream of such queries too, with their dealing.
    """

    model: str
    models: int = 1
    parties: int = 2
    batch: int = 1
    link: str = "lan"
    engine: str = "native"
    device: str = "cpu"
    sustained: bool = False

    @property
    def service(self) -> str:
        """The name of the service that these models are offered for."""
        return f"{self.model}-{self.models}"

    @property
    def computed_by(self) -> str:
        """The engine, and the device where that is not the processor."""
        return self.engine if self.device == "cpu" else f"{self.engine} on {self.device}"

    def __str__(self) -> str:
        what = f"{self.models} x {self.model}" if self.models > 1 else self.model
        return f"{what}, batch {self.batch}, {self.parties} parties, {self.link}, {self.computed_by}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """Where the online time of a query goes, in seconds.

    `latency_s` is rounds times half a round trip, `transfer_s` what one party sends to one other over the link's rate.
    `rest_s` is what is left: computing, the processes between engine and socket, and sharing the input and fetching the
    output, which cost a round trip of their own.
    """

    latency_s: float
    transfer_s: float
    rest_s: float

    @classmethod
    def of(cls, online_s: float, *, rounds: int, bytes_sent: int, parties: int, link: Link) -> Phases:
        """Split a time; `bytes_sent` are those of one party to all others."""
        latency_s = rounds * link.delay_s
        transfer_s = bytes_sent / (parties - 1) / link.bytes_per_s
        return cls(latency_s=latency_s, transfer_s=transfer_s, rest_s=max(0.0, online_s - latency_s - transfer_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one work took: medians over `repeats` queries on a kept committee, after a warm-up; seconds and bytes.

    online_s, offline_s    what the querier's daemon reports: computing, and waiting for correlated randomness
    total_s                from the client's call to its answer
    cold_s                 the same on a committee made for the query: deployments kept, nothing dealt ahead
    first_s                the first query of all, deployments included; measured once
    bytes_sent             of the busiest party, to all others; `link_bytes` is what the emulated link between two
                           parties carried for it, framing and encryption included
    offline_bytes          of the bundle, to all parties
    dealt_ahead            in how many of the queries a bundle was ready; None where the daemon does not say
    max_error              largest difference of a probability from the plaintext one, over all queries
    """

    online_s: float
    offline_s: float
    total_s: float
    cold_s: float | None
    first_s: float
    rounds: int
    bytes_sent: int
    link_bytes: int
    offline_bytes: int
    max_error: float
    repeats: int
    dealt_ahead: int | None
    images_per_s: float
    sustained_images_per_s: float | None
    load: float
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
        replace(lenets, parties=3),
        replace(lenets, parties=5),
        Work(model="resnet18"),
        replace(lenets, batch=32, sustained=True),
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
