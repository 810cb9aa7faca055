"""The demo: five organizations train models of their own, a sixth asks all of them at once, and no one sees its digits.

1. Six daemons start while five small models are trained on an uneven split of scikit-learn's digits.
2. Each owner registers its model and its training counts with its own daemon, as `finode models add` does.
3. The sixth asks for 32 digits that nobody trained on, in one batch, and for others on the committee that is now there.
4. The answers are compared with the plaintext vote, which only a demo can compute: here all models lie on one
   machine.
5. When the epoch is over, the receipts and balances of all nodes are compared, and those of a seventh that starts then.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt
import trio

from finode.client import Answer, Client, Progress
from finode.config import QuerierSection, Role
from finode.errors import DaemonUnavailable, FinodeError
from finode.testnet.digits import CLASSES, INPUT_SHAPE, DigitsFederation, prepare
from finode.testnet.homes import register_model
from finode.testnet.links import LinkTable
from finode.testnet.network import POLL_S, Network, NodeState, describe_exit, first_error, log_hint, start
from finode.testnet.settlement import Settlement, settle
from finode.testnet.topology import ModelFile, NodeSpec, Topology, default_topology

DemoVote = Literal["soft", "prior"]
SERVICE = "digits"
QUESTIONS = (32, 32, 296)
"""Digits of each query. The second is as large as the first, to compare; the third is the rest of those that nobody
trained on: fewer would tell the models' merits no better than chance."""
EPOCH_S = 4
"""Of the demo's federation. A real one takes a day; nobody waits so long for a demo."""
MIN_QUERIES = sum(QUESTIONS)
"""So that there is one statement over all queries, in whichever epochs they end."""
LATE = NodeSpec(name="registry", organization="Regional Registry", roles=(Role.QUERIER,))
"""The node that starts when all is over."""
NEAR_TIE = 0.004
"""Plaintext probabilities of the two best classes nearer than this may come out in either order."""
LARGEST_DIFFERENCE = 0.002
OFFERS_TIMEOUT_S = 30.0  # records go out at once; this is for a machine that swaps

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Screen(Protocol):
    """Where the demo says what it does."""

    def step(self, phase: str, detail: str, done: int, total: int) -> None:
        """`detail` is what was done last, `done` of `total` steps of `phase` are over; total 0 if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How well a private answer fits the plaintext one. `near_ties` are excused where the labels differ."""

    questions: int
    same_labels: int
    near_ties: int
    wrong: int
    largest_difference: float
    accuracy: float

    @property
    def holds(self) -> bool:
        return self.wrong == 0 and self.largest_difference < LARGEST_DIFFERENCE


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One query and how it came out."""

    answer: Answer
    agreement: Agreement


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """All that the demo reports. `seconds` by stage, as seen from outside."""

    seed: int
    owners: tuple[str, ...]
    federation: DigitsFederation = field(repr=False)
    queries: tuple[Asked, ...]
    settlement: Settlement
    seconds: dict[str, float]

    @property
    def agreement(self) -> Agreement:
        """How well the answers of all queries fit."""
        parts = [asked.agreement for asked in self.queries]
        questions = sum(part.questions for part in parts)
        return Agreement(
            questions=questions,
            same_labels=sum(part.same_labels for part in parts),
            near_ties=sum(part.near_ties for part in parts),
            wrong=sum(part.wrong for part in parts),
            largest_difference=max(part.largest_difference for part in parts),
            accuracy=sum(part.accuracy * part.questions for part in parts) / questions,
        )

    @property
    def holds(self) -> bool:
        return all(asked.agreement.holds for asked in self.queries) and self.settlement.holds


def compare(plaintext: Floats, labels: Integers, private: Floats, private_labels: Integers) -> Agreement:
    """Compare private probabilities and labels (n, classes), (n,) with the plaintext ones and the true labels."""
    expected = plaintext.argmax(axis=1)
    ranked = np.sort(plaintext, axis=1)
    differ = private_labels != expected
    near = ranked[:, -1] - ranked[:, -2] < NEAR_TIE
    return Agreement(
        questions=len(labels),
        same_labels=int((~differ).sum()),
        near_ties=int((differ & near).sum()),
        wrong=int((differ & ~near).sum()),
        largest_difference=float(np.abs(private - plaintext).max()),
        accuracy=float((private_labels == labels).mean()),
    )


async def run_demo(
    directory: Path, *, seed: int, screen: Screen, vote: DemoVote = "soft", links: LinkTable | None = None
) -> DemoResult:
    """Run the whole demo with its files under `directory`; raise a `FinodeError` if a step of it fails.

    With `links` the nodes reach each other over emulated ones.
    """
    watch = _Stopwatch()
    topology = demo_topology()
    owners = tuple(node.organization for node in topology.with_role(Role.OWNER))
    network = await start(topology, directory, links=links, later=frozenset({LATE.name}))
    try:
        async with first_error(), trio.open_nursery() as nursery:
            nursery.start_soon(network.watch, _fail_on_exit)
            federation = await _start_and_train(network, owners, directory / "models", seed, vote, screen)
            watch.lap("start and training")
            await _register(network, federation, directory / "models", screen)
            watch.lap("registration")
            queries = await _ask_all(network, federation, vote, screen)
            watch.lap("queries")
            settlement = await settle(network, LATE.name, _sessions(), partial(screen.step, "settlement"))
            watch.lap("settlement")
            nursery.cancel_scope.cancel()
    finally:
        await network.stop()
    return DemoResult(
        seed=seed, owners=owners, federation=federation, queries=queries, settlement=settlement, seconds=watch.laps
    )


async def _start_and_train(
    network: Network, owners: Sequence[str], directory: Path, seed: int, vote: DemoVote, screen: Screen
) -> DigitsFederation:
    ready: list[NodeState] = []

    def on_ready(node: NodeState) -> None:
        ready.append(node)
        screen.step("daemons", f"{node.organization} knows all others", len(ready), len(network.nodes))

    def on_trained(_: str, done: int, total: int) -> None:  # in the training's thread
        trio.from_thread.run_sync(screen.step, "training", f"{owners[done - 1]} has its model", done, total)

    screen.step("daemons", "starting", 0, len(network.nodes))
    screen.step("training", "loading torch", 0, len(owners))
    training = partial(
        prepare,
        directory,
        owners=len(owners),
        alpha=0.5,
        seed=seed,
        held_out=sum(QUESTIONS),
        vote=vote,
        on_progress=on_trained,
    )
    async with first_error(), trio.open_nursery() as nursery:
        nursery.start_soon(network.wait_ready, on_ready)
        # Abandoned when the demo ends early: a thread cannot be stopped, and nobody waits for its models then.
        federation = await trio.to_thread.run_sync(training, abandon_on_cancel=True)
    return federation


async def _register(network: Network, federation: DigitsFederation, directory: Path, screen: Screen) -> None:
    """Register each owner's model with its daemon, and wait until the querier's directory has all offers."""
    owners = network.with_role(Role.OWNER)
    labels, preprocess = directory / "labels.txt", directory / "preprocess.toml"
    labels.write_text("".join(f"{digit}\n" for digit in range(CLASSES)), encoding="utf-8")
    preprocess.write_text(f'size = {list(INPUT_SHAPE[1:])}\ncolor = "gray"\n', encoding="utf-8")
    for done, (node, model) in enumerate(zip(owners, federation.models, strict=True)):
        screen.step("registration", f"{node.organization} offers its model", done, len(owners))
        file = ModelFile(
            path=model.path, service=SERVICE, labels=labels, preprocess=preprocess, counts=model.counts_path
        )
        await trio.to_thread.run_sync(register_model, node.home, file)
        async with Client(home=node.home) as client:
            await client.reload()
    with trio.move_on_after(OFFERS_TIMEOUT_S):
        async with Client(home=_querier(network).home) as client:
            while (offers := await _offers(client)) < len(owners):  # noqa: ASYNC110 - in another process
                await trio.sleep(POLL_S)
            screen.step("registration", "all offers are in the querier's directory", len(owners), len(owners))
            return
    raise DaemonUnavailable(f"after {OFFERS_TIMEOUT_S:.0f} s the querier knows {offers} of {len(owners)} models")


async def _offers(client: Client) -> int:
    return sum(len(service.offers) for service in await client.services() if service.name == SERVICE)


async def _ask_all(network: Network, federation: DigitsFederation, vote: DemoVote, screen: Screen) -> tuple[Asked, ...]:
    asked: list[Asked] = []
    async with Client(home=_querier(network).home) as client:
        for number, count in enumerate(QUESTIONS):
            begin = sum(QUESTIONS[:number])
            phase = f"query {number + 1} of {len(QUESTIONS)}"
            asked.append(await _ask(client, federation, slice(begin, begin + count), phase, vote, screen))
    return tuple(asked)


async def _ask(
    client: Client, federation: DigitsFederation, which: slice, phase: str, vote: DemoVote, screen: Screen
) -> Asked:
    def on_progress(progress: Progress) -> None:
        screen.step(phase, progress.phase, progress.done, progress.total)

    inputs = federation.inputs[which]
    screen.step(phase, f"{len(inputs)} digits in one batch", 0, 0)
    answer = await client.query(SERVICE, inputs, vote=vote, on_progress=on_progress)
    screen.step(phase, f"answered in {answer.timings.total_s:.1f} s", 1, 1)
    if answer.probabilities is None:
        raise FinodeError(f"{phase} asked for probabilities, and the answer has none")
    agreement = compare(
        federation.plaintext_probabilities[which],
        federation.labels[which],
        answer.probabilities,
        answer.label_indices,
    )
    return Asked(answer=answer, agreement=agreement)


def demo_topology() -> Topology:
    """Return the default topology, but its querier wants all models or no answer, so that there is one to compare."""
    topology = default_topology()
    federation = {"federation": {"epoch_s": EPOCH_S, "min_queries": MIN_QUERIES}}
    querier = {"querier": {"min_models": len(topology.with_role(Role.OWNER))}}
    return replace(
        topology,
        nodes=tuple(
            replace(node, settings={**federation, **(querier if Role.QUERIER in node.roles else {})})
            for node in (*topology.nodes, LATE)
        ),
    )


def _sessions() -> int:
    """Return how many sessions the queries take: a session has so many inputs at most."""
    return sum(-(-count // QuerierSection().max_batch) for count in QUESTIONS)


def _querier(network: Network) -> NodeState:
    return network.with_role(Role.QUERIER)[0]


def _fail_on_exit(node: NodeState, code: int) -> None:
    raise DaemonUnavailable(
        f"node {node.name!r} ({node.organization}) {describe_exit(code)} during the demo", hint=log_hint(node)
    )


class _Stopwatch:
    """Seconds from one lap to the next."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._last = now - self._last, now
