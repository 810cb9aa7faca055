"""How well pay follows skill, by sums that daemons opened: one of the federations of `fairness`, for real.

1. A testnet starts while an MLP is trained for each owner on its part of the digits, as for the table in the clear.
2. Each owner registers its MLP. Two of them are the parties, a third deals; two more organizations only ask.
3. The two ask the same number of images that nobody trained on, in turns: no querier may have asked more than half of
   what is opened. Afterwards they share the true labels.
4. When the epoch is over, the parties open the sums over all sessions, of votes and of right answers. The books of all
   nodes are compared, and the statements are taken from the ledger of one.
5. Every scheme sees the opened sums, and those that the same answers come to in the clear.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from finode.client import Client
from finode.config import Role
from finode.daemon.schemes import ENTROPY_TOLERANCE, Opened, Statements, sums_of_answers, sums_of_statements
from finode.daemon.statements import read_statements
from finode.errors import ConfigError, DaemonUnavailable
from finode.testnet.demo import Screen
from finode.testnet.digits import INPUT_SHAPE, AnsweringModels, export_answering
from finode.testnet.fairness import OWNERS, QUERIES, Score, score_statements, score_sums
from finode.testnet.homes import register_model
from finode.testnet.network import POLL_S, Network, NodeState, describe_exit, first_error, log_hint, start
from finode.testnet.settlement import Books, same_books
from finode.testnet.topology import ModelFile, NodeSpec, Settings, Topology

SERVICE = "digits"
QUERIERS = 2
BATCH = 60
"""Inputs of a session. They divide what a querier asks, and a session runs as 64 with the padding."""
EPOCH_S = 20
OFFERS_TIMEOUT_S = 30.0
OPENED_TIMEOUT_S = 120.0
"""An epoch, the grace after it, and an opening that is put off a few times on a machine that is busy."""
SPREAD_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is asked: `queries` inputs by `QUERIERS` nodes in sessions of `batch`, in epochs of `epoch_s`."""

    queries: int = QUERIES
    batch: int = BATCH
    epoch_s: int = EPOCH_S
    min_queries: int = 50
    scheme: str = "dawid_skene"

    def __post_init__(self) -> None:
        if self.batch < 1 or self.queries % (QUERIERS * self.batch):
            raise ConfigError(
                f"{self.queries} queries do not go into sessions of {self.batch} inputs, as many by each querier"
            )

    def turns(self) -> Iterator[tuple[slice, ...]]:
        """Yield which inputs the queriers ask at a time, one session each."""
        for begin in range(0, self.queries, QUERIERS * self.batch):
            yield tuple(
                slice(begin + index * self.batch, begin + (index + 1) * self.batch) for index in range(QUERIERS)
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Opened sums against those in the clear; the differences are the largest of any entry.

    `entropy_tolerance` is what the engine's tables allow on as many inputs, at the sums' scale of 2^16.
    """

    inputs: bool
    joint: int
    counts: int
    agreement: int
    correct: int
    entropy: int
    entropy_tolerance: int

    @property
    def holds(self) -> bool:
        exact = not (self.joint or self.counts or self.agreement or self.correct)
        return self.inputs and exact and self.entropy <= self.entropy_tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class DaemonRun:
    """What came of it: the scores of every scheme on the opened sums and in the clear, and the nodes' books."""

    seed: int
    alpha: float
    plan: Plan
    opened: Mapping[str, Score]
    clear: Mapping[str, Score]
    comparison: Comparison
    statements: Statements = field(repr=False)
    books: tuple[Books, ...]
    pending: int
    seconds: Mapping[str, float]

    @property
    def equal(self) -> bool:
        """Whether all nodes have the same books."""
        return all(books.equals(self.books[0]) for books in self.books)

    @property
    def holds(self) -> bool:
        return self.comparison.holds and self.equal and not self.pending


async def run_with_daemons(directory: Path, *, seed: int, alpha: float, screen: Screen) -> DaemonRun:
    """Train, ask, open and score one federation of `OWNERS` owners with its files under `directory`.

    Raises a `FinodeError` if a step of it fails.
    """
    plan, laps = Plan(), {"start": time.monotonic()}
    topology = fairness_topology(OWNERS, plan)
    network = await start(topology, directory)
    try:
        async with first_error(), trio.open_nursery() as nursery:
            nursery.start_soon(network.watch, fail_on_exit)
            models = await _start_and_train(network, directory / "models", seed, alpha, plan, screen)
            laps["start and training"] = time.monotonic()
            accuracies = await register(network, models, screen)
            laps["registration"] = time.monotonic()
            sessions = await ask(network, models, plan, screen)
            laps["queries"] = time.monotonic()
            await give_labels(sessions, models, screen)
            laps["labels"] = time.monotonic()
            statements, books = await wait_opened(network, plan, screen)
            laps["openings"] = time.monotonic()
            async with Client(home=network.nodes[0].home) as client:
                pending = (await client.rewards()).pending
            nursery.cancel_scope.cancel()
    finally:
        await network.stop()
    moments = list(laps.items())
    comparison, clear = compare_sums(sums_of_statements(statements), models, accuracies)
    return DaemonRun(
        seed=seed,
        alpha=alpha,
        plan=plan,
        opened=score_statements(statements, accuracies),
        clear=clear,
        comparison=comparison,
        statements=statements,
        books=books,
        pending=pending,
        seconds={name: at - moments[index][1] for index, (name, at) in enumerate(moments[1:])},
    )


def fairness_topology(owners: int, plan: Plan) -> Topology:
    """Return `owners` (three at least) owners, of which the first two compute and the third deals, and the queriers.

    There is one possible committee, so that all sessions add up to one set of sums.
    """
    settings: dict[str, dict[str, Any]] = {
        "federation": {"epoch_s": plan.epoch_s, "min_queries": plan.min_queries, "scheme": plan.scheme}
    }
    asking = {**settings, "querier": {"min_models": owners, "quota": 2 * plan.queries, "max_batch": plan.batch}}
    serving = (Role.PARTY, Role.PARTY, Role.DEALER)

    def owner(index: int) -> NodeSpec:
        roles = (Role.OWNER, *serving[index : index + 1])
        return NodeSpec(name=f"owner-{index + 1}", organization=f"Owner {index + 1}", roles=roles, settings=settings)

    def querier(index: int, settings: Settings) -> NodeSpec:
        return NodeSpec(
            name=f"querier-{index + 1}", organization=f"Querier {index + 1}", roles=(Role.QUERIER,), settings=settings
        )

    return Topology(
        federation="fairness",
        nodes=(*map(owner, range(owners)), *(querier(index, asking) for index in range(QUERIERS))),
    )


async def _start_and_train(
    network: Network, directory: Path, seed: int, alpha: float, plan: Plan, screen: Screen
) -> AnsweringModels:
    ready: list[NodeState] = []

    def on_ready(node: NodeState) -> None:
        ready.append(node)
        screen.step("daemons", f"{node.organization} knows all others", len(ready), len(network.nodes))

    screen.step("daemons", f"starting {len(network.nodes)}, and training {OWNERS} models", 0, len(network.nodes))
    training = partial(export_answering, directory, owners=OWNERS, alpha=alpha, seed=seed, queries=plan.queries)
    async with first_error(), trio.open_nursery() as nursery:
        nursery.start_soon(network.wait_ready, on_ready)
        # Abandoned when the run ends early: a thread cannot be stopped, and nobody waits for its models then.
        models = await trio.to_thread.run_sync(training, abandon_on_cancel=True)
    return models


async def register(network: Network, models: AnsweringModels, screen: Screen) -> dict[str, float]:
    """Register one model with each owner; return the accuracies by hex version, in the order of the owners."""
    owners = network.with_role(Role.OWNER)
    accuracies = (models.answers.argmax(axis=2) == models.labels).mean(axis=1)
    preprocess = models.paths[0].with_name("preprocess.toml")
    preprocess.write_text(f'size = {list(INPUT_SHAPE[1:])}\ncolor = "gray"\n', encoding="utf-8")
    found: dict[str, float] = {}
    for done, (node, path, accuracy) in enumerate(zip(owners, models.paths, accuracies, strict=True)):
        screen.step("registration", f"{node.organization} offers its model", done, len(owners))
        file = ModelFile(path=path, service=SERVICE, preprocess=preprocess)
        await trio.to_thread.run_sync(register_model, node.home, file)
        async with Client(home=node.home) as client:
            await client.reload()
            (own,) = await client.models()
        found[own.version] = float(accuracy)
    if len(found) != len(owners):
        raise ConfigError("two of the models are the same, and cannot be told apart")
    with trio.move_on_after(OFFERS_TIMEOUT_S) as deadline:
        for querier in network.with_role(Role.QUERIER):
            async with Client(home=querier.home) as client:
                while await _offers(client) < len(owners):  # noqa: ASYNC110 - in another process
                    await trio.sleep(POLL_S)
    if deadline.cancelled_caught:
        raise DaemonUnavailable(f"after {OFFERS_TIMEOUT_S:.0f} s a querier does not know all {len(owners)} models")
    screen.step("registration", "all offers are in the queriers' directories", len(owners), len(owners))
    return found


async def _offers(client: Client) -> int:
    return sum(len(service.offers) for service in await client.services() if service.name == SERVICE)


@dataclass(frozen=True, slots=True)
class AskedPart:
    """A session, who asked it, and which inputs."""

    querier: NodeState
    session: str
    inputs: slice


async def ask(network: Network, models: AnsweringModels, plan: Plan, screen: Screen) -> tuple[AskedPart, ...]:
    """Have the queriers ask all inputs, one session each at a time, so that they stay level."""
    asked: list[AskedPart] = []
    queriers = network.with_role(Role.QUERIER)

    async def one(node: NodeState, inputs: slice) -> None:
        async with Client(home=node.home) as client:
            answer = await client.query(SERVICE, models.inputs[inputs], reveal="label")
        asked.append(AskedPart(node, answer.session, inputs))
        total = plan.queries // plan.batch
        screen.step("queries", f"{plan.batch} images asked by {node.organization}", len(asked), total)

    for turn in plan.turns():
        async with first_error(), trio.open_nursery() as nursery:
            for node, inputs in zip(queriers, turn, strict=True):
                nursery.start_soon(one, node, inputs)
    return tuple(asked)


async def give_labels(asked: Sequence[AskedPart], models: AnsweringModels, screen: Screen) -> None:
    """Share the true labels of all sessions, each by the node that asked it."""
    for done, part in enumerate(asked, start=1):
        async with Client(home=part.querier.home) as client:
            await client.feedback(part.session, models.labels[part.inputs])
        screen.step("labels", f"shared by {part.querier.organization}", done, len(asked))


async def wait_opened(network: Network, plan: Plan, screen: Screen) -> tuple[Statements, tuple[Books, ...]]:
    """Wait until the sums over all queries are opened, and every node has the same books.

    Raises `DaemonUnavailable` if the statements do not come in time; books that differ are no error.
    """
    first, *others = network.nodes
    found: Statements = ()
    screen.step("openings", f"waiting for the end of an epoch of {plan.epoch_s} s", 0, len(network.nodes))
    with trio.move_on_after(OPENED_TIMEOUT_S) as deadline:
        async with Client(home=first.home) as client:
            while any(samples < plan.queries for samples in _samples(found).values()):
                await trio.sleep(POLL_S)
                found = read_statements(await client.export_receipts())
    if deadline.cancelled_caught:
        state = ", ".join(f"{samples} by {kind}" for kind, samples in _samples(found).items())
        raise DaemonUnavailable(
            f"after {OPENED_TIMEOUT_S:.0f} s {first.name!r} has opened sums over {state}; {plan.queries} were asked",
            hint=log_hint(first),
        )
    books = [await same_books(first, None, SPREAD_TIMEOUT_S)]
    for node in others:
        books.append(await same_books(node, books[0], SPREAD_TIMEOUT_S))
        screen.step("openings", f"{node.organization} has the same books", len(books), len(network.nodes))
    return found, tuple(books)


def _samples(statements: Statements) -> dict[str, int]:
    samples = {"agreement": 0, "labels": 0}
    for one in statements:
        samples[one.kind] += one.samples
    return samples


def compare_sums(
    opened: Opened, models: AnsweringModels, accuracies: Mapping[str, float]
) -> tuple[Comparison, dict[str, Score]]:
    """Compare opened sums with those of the answers in the clear; return also the scores of the latter.

    `accuracies` are those of `register`, in the order of the answers.
    """
    owners = list(accuracies)
    order = [owners.index(version) for version in opened.versions]
    sums, clear = opened.sums, sums_of_answers(models.answers[order], models.labels)
    comparison = Comparison(
        inputs=sums.samples == clear.samples,
        joint=_difference(sums.joint, clear.joint),
        counts=_difference(sums.counts, clear.counts),
        agreement=_difference(sums.agreement, clear.agreement),
        correct=_difference(sums.correct, clear.correct),
        entropy=_difference(sums.entropy, clear.entropy),
        entropy_tolerance=ENTROPY_TOLERANCE * clear.samples,
    )
    return comparison, score_sums(clear, [accuracies[version] for version in opened.versions])


def _difference(left: Sequence[int], right: Sequence[int]) -> int:
    return max((abs(one - other) for one, other in zip(left, right, strict=True)), default=0)


def fail_on_exit(node: NodeState, code: int) -> None:
    """Raise `DaemonUnavailable`: a daemon ended."""
    raise DaemonUnavailable(f"node {node.name!r} {describe_exit(code)} during the run", hint=log_hint(node))
