"""`finode testnet fairness --daemons`: what opened sums are compared with, and a small federation of real daemons."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import trio
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console

from finode.cli.root import finode
from finode.client import Client
from finode.daemon.schemes import Opened, sums_of_answers, sums_of_statements
from finode.daemon.statements import read_statements
from finode.errors import ConfigError, MalformedMessage
from finode.models.float_run import probabilities
from finode.models.onnx_import import import_onnx
from finode.testnet import opened
from finode.testnet.digits import AnsweringModels, answers, export_answering
from finode.testnet.fairness_report import describe_comparison, opened_json, print_opened
from finode.testnet.network import start
from finode.testnet.opened import DaemonRun, Plan, compare_sums
from finode.testnet.settlement import Books

ANSWERS = np.array([[[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]], [[0.6, 0.3, 0.1], [0.1, 0.3, 0.6]]])
MODELS = AnsweringModels(paths=(), inputs=np.zeros((2, 1, 8, 8)), labels=np.array([0, 1]), answers=ANSWERS)
ACCURACIES = {"bb": 1.0, "aa": 0.5}
IN_ORDER = Opened(("aa", "bb"), sums_of_answers(ANSWERS[::-1], MODELS.labels))


class Silent:
    def step(self, phase: str, detail: str, done: int, total: int) -> None:
        assert 0 <= done <= max(total, done)


def test_opened_sums_are_compared_model_by_model() -> None:
    comparison, scores = compare_sums(IN_ORDER, MODELS, ACCURACIES)

    assert comparison.holds
    assert scores["labelled"].f_skill == pytest.approx(1)


@pytest.mark.parametrize("name", ["joint", "counts", "agreement", "correct", "entropy", "samples"])
def test_a_sum_that_is_off_is_found(name: str) -> None:
    sums = IN_ORDER.sums
    off = 33 if name == "entropy" else 1  # 16 are allowed per input
    wrong: dict[str, Any] = {"samples": 3}
    if name != "samples":
        first, *rest = getattr(sums, name)
        wrong = {name: (first + off, *rest)}

    comparison, _ = compare_sums(replace(IN_ORDER, sums=replace(sums, **wrong)), MODELS, ACCURACIES)

    assert not comparison.holds
    assert "ANOTHER NUMBER" in describe_comparison(comparison) or name != "samples"


def test_the_queriers_ask_in_turns_and_everything_once() -> None:
    turns = list(Plan(queries=24, batch=4).turns())

    assert [len(turn) for turn in turns] == [2, 2, 2]
    assert sorted(i for turn in turns for inputs in turn for i in range(24)[inputs]) == list(range(24))
    with pytest.raises(ConfigError, match="do not go into sessions"):
        Plan(queries=20, batch=4)


def run_of(**changes: object) -> DaemonRun:
    comparison, scores = compare_sums(IN_ORDER, MODELS, ACCURACIES)
    books = Books(node="a", organization="A", receipts=2, statements=2, digest="d1")
    run = DaemonRun(
        seed=3,
        alpha=0.1,
        plan=Plan(),
        opened=scores,
        clear=scores,
        comparison=comparison,
        statements=(),
        books=(books, replace(books, node="b")),
        pending=0,
        seconds={"queries": 1.5},
    )
    return replace(run, **changes)  # type: ignore[arg-type]


def test_the_report_puts_both_beside_each_other() -> None:
    def printed(run: DaemonRun) -> str:
        console = Console(file=io.StringIO(), width=160)
        print_opened(console, [run])
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    run = run_of()
    text = printed(run)

    assert "opened, seed 3" in text
    assert "labelled" in text
    assert "equal to those in the clear: joint votes, counts, agreement, right answers" in text
    assert "the same books on 2 nodes, 0 micro-credits pending" in text
    assert "joint votes DIFFER by up to 2" in printed(replace(run, comparison=replace(run.comparison, joint=2)))
    assert "OTHER books" in printed(replace(run, books=(run.books[0], replace(run.books[1], digest="e2"))))
    (found,) = json.loads(opened_json([run]))
    assert found["holds"] is True
    assert found["schemes"]["labelled"]["opened"] == found["schemes"]["labelled"]["clear"]


def test_the_command_fails_where_the_sums_or_the_books_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[DaemonRun] = []

    async def run_with_daemons(_: Path, *, seed: int, alpha: float, screen: object) -> DaemonRun:
        return replace(found[-1], seed=seed, alpha=alpha)

    monkeypatch.setattr(opened, "run_with_daemons", run_with_daemons)
    arguments = ["testnet", "fairness", "--daemons", "--seed", "7", "--json"]
    found.append(run_of())
    good = CliRunner().invoke(finode, [*arguments, "--alpha", "0.1", "--alpha", "0.5"])
    found.append(run_of(pending=1))
    bad = CliRunner().invoke(finode, arguments)

    assert good.exit_code == 0
    assert [(run["seed"], run["alpha"]) for run in json.loads(good.stdout)] == [(7, 0.1), (7, 0.5)]
    assert bad.exit_code == 1
    assert json.loads(bad.stdout)[0]["holds"] is False
    assert "the books of the nodes differ" in bad.stderr
    assert CliRunner().invoke(finode, [*arguments, "--attacks"]).exit_code == 2


def test_a_damaged_export_gives_no_statements() -> None:
    with pytest.raises(MalformedMessage):
        read_statements(b"finode ledger 1\n")


@pytest.mark.slow
def test_exported_models_are_those_that_answer(tmp_path: Path) -> None:
    exported = export_answering(tmp_path, owners=1, alpha=1.0, seed=2, queries=1600)

    np.testing.assert_array_equal(exported.answers, answers(owners=1, alpha=1.0, seed=2, queries=1600)[0])
    model = import_onnx(exported.paths[0])
    private = probabilities(model.plan, model.weights, exported.inputs)
    np.testing.assert_allclose(private, exported.answers[0], atol=1e-5)


def linear(path: Path, weights: np.ndarray) -> Path:
    """Write an ONNX model of 1x8x8 inputs: the logits are `weights` (10, 64) times the input."""
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w"], ["y"], transB=1, name="gemm"),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weights.astype(np.float32), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    onnx.checker.check_model(model)
    return path


def toy_models(directory: Path, owners: int, inputs: int) -> AnsweringModels:
    """Models of chance; the label of an input is what one of them says of it, in turns."""
    generator = np.random.default_rng(11)
    images = generator.uniform(size=(inputs, 1, 8, 8))
    weights = generator.normal(size=(owners, 10, 64)).astype(np.float32)
    logits = np.einsum("kcp,np->knc", weights.astype(np.float64), images.reshape(inputs, 64))
    powers = np.exp(logits - logits.max(axis=2, keepdims=True))
    labels = logits.argmax(axis=2)[np.arange(inputs) % owners, np.arange(inputs)]
    return AnsweringModels(
        paths=tuple(linear(directory / f"{k}.onnx", weights[k]) for k in range(owners)),
        inputs=images,
        labels=labels,
        answers=powers / powers.sum(axis=2, keepdims=True),
    )


@pytest.mark.slow
@pytest.mark.trio
async def test_daemons_open_the_sums_and_every_node_pays_alike(tmp_path: Path) -> None:
    plan = Plan(queries=16, batch=4, epoch_s=2, min_queries=8)
    models, screen = toy_models(tmp_path, 3, plan.queries), Silent()
    network = await start(opened.fairness_topology(3, plan), tmp_path / "net")
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(network.watch, opened.fail_on_exit)
            await network.wait_ready(lambda node: None)
            accuracies = await opened.register(network, models, screen)
            asked = await opened.ask(network, models, plan, screen)
            await opened.give_labels(asked, models, screen)
            statements, books = await opened.wait_opened(network, plan, screen)

            assert len(books) == len(network.nodes) == 5
            assert all(one.equals(books[0]) for one in books)
            assert books[0].receipts == len(asked) == 4
            for node in network.nodes:
                async with Client(home=node.home) as client:
                    found = read_statements(await client.export_receipts())
                    rewards = await client.rewards()
                    explained = [await client.explain(one.organization) for one in rewards.balances]
                assert sorted(one.id for one in found) == sorted(one.id for one in statements)
                assert rewards.pending == 0
                assert rewards.paid_in == rewards.paid_out == 16 * 1000
                assert sum(one.balance for one in rewards.balances) == 0
                for line, why in zip(rewards.balances, explained, strict=True):
                    assert sum(amount.amount for amount in why.amounts) == why.balance == line.balance
            nursery.cancel_scope.cancel()
    finally:
        await network.stop()

    comparison, _ = compare_sums(sums_of_statements(statements), models, accuracies)
    assert comparison.holds, comparison
    labelled = [one for one in statements if one.kind == "labels"]
    right = dict.fromkeys(accuracies, 0)
    for one in labelled:
        for model, correct in zip(one.models, one.correct, strict=True):
            right[model.version.hex()] += correct
    assert list(right.values()) == [int(row.sum()) for row in models.answers.argmax(axis=2) == models.labels]
