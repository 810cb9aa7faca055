"""What presets and sweeps measure, how a time is split, and which federation is started for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from finode.config import Role
from finode.testnet.bench import models
from finode.testnet.bench.agreement import Digits
from finode.testnet.bench.federation import topology_of
from finode.testnet.bench.models import MODELS
from finode.testnet.bench.work import SWEEPS, Phases, Work, on_devices, quick_preset, table_preset, with_engines
from finode.testnet.links import KINDS, Link


def test_the_table_has_all_figures_that_the_engine_is_held_to() -> None:
    found = {(work.model, work.models, work.parties, work.batch) for work in table_preset()}

    assert found == {("lenet", 5, n, 1) for n in (2, 3, 5)} | {("lenet", 5, 2, 32), ("resnet18", 1, 2, 1)}
    assert {work.link for work in table_preset()} == {"lan", "continental"}
    assert all(work.sustained == (work.batch > 1) for work in table_preset())
    assert set(quick_preset()) <= set(table_preset())


@pytest.mark.parametrize(
    ("sweep", "varied", "values"),
    [
        ("parties", lambda work: work.parties, {2, 3, 4, 5}),
        ("batch", lambda work: work.batch, {1, 2, 4, 8, 16, 32, 64}),
        ("models", lambda work: work.model, set(MODELS) - {"tiny", "resnet50"}),
        ("links", lambda work: work.link, set(KINDS)),
    ],
    ids=["parties", "batch", "models", "links"],
)
def test_a_sweep_varies_one_thing(sweep: str, varied: Callable[[Work], object], values: set[object]) -> None:
    works = SWEEPS[sweep]()

    assert {varied(work) for work in works} == values
    assert len(set(works)) == len(works)


def test_engines_stand_side_by_side() -> None:
    works = with_engines([Work(model="lenet"), Work(model="mlp")], ["native", "crypten"])

    assert [(work.model, work.engine) for work in works] == [
        ("lenet", "native"),
        ("lenet", "crypten"),
        ("mlp", "native"),
        ("mlp", "crypten"),
    ]


def test_devices_follow_each_other_and_only_the_native_engine_changes_them() -> None:
    works = on_devices(with_engines([Work(model="lenet"), Work(model="mlp")], ["native", "crypten"]), ["cpu", "cuda"])

    assert [(work.model, work.engine, work.device) for work in works] == [
        ("lenet", "native", "cpu"),
        ("lenet", "crypten", "cpu"),
        ("mlp", "native", "cpu"),
        ("mlp", "crypten", "cpu"),
        ("lenet", "native", "cuda"),
        ("mlp", "native", "cuda"),
    ]
    assert [work.computed_by for work in works[:5]] == ["native", "crypten", "native", "crypten", "native on cuda"]


def test_a_time_is_split_into_rounds_transfer_and_the_rest() -> None:
    link = Link(rtt_ms=40, mbit=200)
    phases = Phases.of(1.0, rounds=20, bytes_sent=5_000_000, parties=3, compute_s=0.25, link=link)

    assert phases.latency_s == pytest.approx(20 * 0.020)
    assert phases.asking_s == pytest.approx(0.040)
    assert phases.transfer_s == pytest.approx(2_500_000 / 25e6)  # half of it goes to each of the two others
    assert phases.compute_s == 0.25
    assert phases.rest_s == pytest.approx(1.0 - 0.4 - 0.04 - 0.1 - 0.25)


def test_a_federation_has_just_the_parties_and_their_models(tmp_path: Path) -> None:
    works = [Work(model="tiny", models=3, link=link) for link in ("lan", "continental")] + [Work(model="tiny")]

    topology = topology_of(works, tmp_path)

    assert [node.name for node in topology.nodes] == ["party-1", "party-2", "dealer", "querier", "cold-querier"]
    owned = {node.name: [model.service for model in node.models] for node in topology.with_role(Role.OWNER)}
    assert owned == {"party-1": ["tiny-3", "tiny-3", "tiny-1"], "party-2": ["tiny-3"]}
    assert all(model.path.exists() for node in topology.nodes for model in node.models)
    warm, cold = topology.with_role(Role.QUERIER)
    assert set(cold.settings["querier"]) - set(warm.settings["querier"]) == {"committee_lifetime_s"}


def test_parties_and_dealer_compute_on_the_device_and_large_images_get_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "write_model", lambda name, seed, path: None)
    (small, large), device = (
        [topology_of([Work(model=model, device="cuda")], tmp_path / model) for model in ("tiny", "resnet50")],
        {"device": "cuda"},
    )

    assert [node.settings.get("node") for node in small.nodes] == [device] * 3 + [None] * 2
    assert small.nodes[0].settings["party"]["session_memory_mb"] > 64 * 17.4  # of an input of five LeNets
    assert "dealer" not in small.nodes[0].settings
    assert large.nodes[0].settings["party"]["session_memory_mb"] > 2931  # what a run of ResNet-50 takes
    assert models.inputs(2, shape=models.input_shape("resnet50")).shape == (2, 3, 224, 224)


def test_a_stream_has_a_querier_of_its_own_and_digits_are_owned_by_the_parties(tmp_path: Path) -> None:
    digits = Digits((tmp_path / "a.onnx", tmp_path / "b.onnx"), np.zeros((3, 1, 8, 8)), np.zeros((3, 10)))

    topology = topology_of([Work(model="tiny", profile="throughput")], tmp_path, digits)

    profiles = [node.settings["querier"].get("profile") for node in topology.with_role(Role.QUERIER)]
    assert profiles == [None, None, "throughput"]
    assert all(node.settings["querier"]["max_batch"] == 64 for node in topology.with_role(Role.QUERIER))
    owned = {node.name: [model.service for model in node.models] for node in topology.with_role(Role.OWNER)}
    assert owned == {"party-1": ["tiny-1", "digits"], "party-2": ["digits"]}
