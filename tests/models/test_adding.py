from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finode.errors import InputError, ModelError, RangeExceeded
from finode.models.adding import add_model_file
from finode.models.calibration import calibrate, limits
from finode.models.float_run import run_float
from finode.models.registry import Registry
from finode.smpc.counts import COUNTS
from finode.wire.directory import Color
from tests.models.building import BATCH, imported, model, node, small_import, small_model


def saved(path: Path, *values: float) -> Path:
    np.save(path, np.stack([np.full((1, 2, 2), value) for value in values]))
    return path


def test_everything_at_once(home: Path, tmp_path: Path, onnx_file: Path) -> None:
    labels, preprocess = tmp_path / "labels.txt", tmp_path / "preprocess.toml"
    labels.write_text("cat\ndog\nowl\n")
    preprocess.write_text('color = "gray"\nmean = 0.5\n')
    registry = Registry(home)
    report = add_model_file(
        registry,
        onnx_file,
        "pets",
        labels_path=labels,
        price=3,
        calibration_path=saved(tmp_path / "x.npy", 1.0, -32.0),
        preprocess_path=preprocess,
    )
    assert registry.list() == (report.entry,)
    assert report.entry.service.classes == ("cat", "dog", "owl")
    assert report.entry.service.input.color is Color.GRAY
    assert report.entry.price == 3
    assert (report.largest, report.largest_step, report.margin_bits) == (64.0, "linear1", 5.0)
    assert (report.range_bits, report.calibration_samples, report.warnings) == (11, 2, ())


def test_without_files_the_defaults_are_said(home: Path, onnx_file: Path) -> None:
    report = add_model_file(Registry(home), onnx_file, "pets")
    assert report.entry.service.classes == ("0", "1", "2")
    assert report.entry.service.input.color is Color.NONE
    assert any("--calibration" in warning for warning in report.warnings)
    assert any("--preprocess" in warning for warning in report.warnings)


def test_the_second_model_of_a_service_takes_over_its_description(home: Path, tmp_path: Path, onnx_file: Path) -> None:
    labels, preprocess, second = tmp_path / "labels.txt", tmp_path / "preprocess.toml", tmp_path / "second.onnx"
    labels.write_text("cat\ndog\nowl\n")
    preprocess.write_text("scale = 0.5\n")
    second.write_bytes(small_model(3.0))
    registry = Registry(home)
    first = add_model_file(registry, onnx_file, "pets", labels_path=labels, preprocess_path=preprocess)
    assert add_model_file(registry, second, "pets").entry.service == first.entry.service

    labels.write_text("cat\nowl\ndog\n")
    second.write_bytes(small_model(4.0))
    with pytest.raises(ModelError, match="does not agree with service 'pets' on classes"):
        add_model_file(registry, second, "pets", labels_path=labels)
    preprocess.write_text("scale = 0.25\n")
    with pytest.raises(ModelError, match=r"does not agree with service 'pets' on input\.scale"):
        add_model_file(registry, second, "pets", preprocess_path=preprocess)
    assert len(registry.list()) == 2


def test_what_does_not_fit_is_refused_and_not_registered(home: Path, tmp_path: Path, onnx_file: Path) -> None:
    registry = Registry(home)
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\ndog\n")
    with pytest.raises(ModelError, match="3 classes, service 'pets' names 2"):
        add_model_file(registry, onnx_file, "pets", labels_path=labels)
    with pytest.raises(InputError, match="a service's name has letters"):
        add_model_file(registry, onnx_file, "my pets")
    np.save(tmp_path / "x.npy", np.zeros((3, 3)))
    with pytest.raises(InputError, match=r"expected \(1, 2, 2\) or \(batch, 1, 2, 2\)"):
        add_model_file(registry, onnx_file, "pets", calibration_path=tmp_path / "x.npy")
    onnx_file.write_bytes(b"broken")
    with pytest.raises(ModelError, match=r"small\.onnx"):
        add_model_file(registry, onnx_file, "pets")
    assert registry.list() == ()


def test_a_model_that_leaves_the_range_is_refused_by_its_step(home: Path, tmp_path: Path, onnx_file: Path) -> None:
    registry = Registry(home)
    onnx_file.write_bytes(small_model(512.0))
    with pytest.raises(RangeExceeded, match=r"step 'linear1' \(node 'head'\) reaches 768000 .* ends at 524288"):
        add_model_file(registry, onnx_file, "pets", calibration_path=saved(tmp_path / "x.npy", 1500.0))
    assert registry.list() == ()
    # Exactly the limit is outside: |value| < 2^19.
    with pytest.raises(RangeExceeded):
        calibrate(small_import(512.0), np.full((1, 1, 2, 2), 1024.0))
    near = calibrate(small_import(512.0), np.full((1, 1, 2, 2), 1023.0))
    assert 0 < near.margin_bits < 0.01
    assert near.range_bits == 19
    assert "larger inputs" in near.warnings[0]
    assert "values below 2^19" in near.warnings[1]


@pytest.mark.parametrize(("level", "range_bits"), [(1.0, 11), (511.0, 11), (512.0, 13), (2000.0, 13), (2047.0, 13)])
def test_the_least_range_with_a_factor_of_two_is_chosen(level: float, range_bits: int) -> None:
    found = calibrate(small_import(), np.full((1, 1, 2, 2), level))
    assert found.range_bits == range_bits
    assert found.margin_bits >= (1 if level < 1024 else 0)
    assert (len(found.warnings) > 0) == (range_bits > 11)


def test_the_input_and_what_an_exp_gives_keep_their_own_limit() -> None:
    nodes = [node("Exp", ["x"], ["e"]), node("Gemm", ["e", "W"], ["y"], name="a")]
    found = imported(model(nodes, (BATCH, 2), {"W": np.eye(2)}))
    assert limits(found.plan) == {"input": 11, "exp1": 11, "linear1": 19}
    assert limits(found.plan, 13)["linear1"] == 13
    with pytest.raises(RangeExceeded, match="the input reaches 2048"):
        calibrate(found, np.full((1, 2), 2048.0))
    with pytest.raises(RangeExceeded, match=r"step 'exp1' .* ends at 2048"):
        calibrate(found, np.full((1, 2), 8.0))


def test_tiny_weights_are_reported() -> None:
    nodes = [node("Gemm", ["x", "W"], ["h"], name="a"), node("Gemm", ["h", "V"], ["y"], name="b")]
    found = imported(model(nodes, (BATCH, 2), {"W": 3e-6 * np.eye(2), "V": 1e6 * np.eye(2)}))
    report = calibrate(found, np.asarray([[1.0, 0.5]]))
    assert any("some weights are very small" in warning for warning in report.warnings)


def test_values_are_shown_in_order_and_dropped_after_their_last_reader() -> None:
    found = small_import()
    seen: list[str] = []
    x = np.ones((2, 1, 2, 2))
    logits = run_float(found.plan, found.weights, x, lambda name, values: seen.append(f"{name}{values.shape}"))
    assert seen == ["input(2, 1, 2, 2)", "reshape1(2, 4)", "linear1(2, 3)"]
    np.testing.assert_array_equal(logits, [[1, 2, -1]] * 2)


def test_training_counts_become_one_more_weight(home: Path, tmp_path: Path, onnx_file: Path) -> None:
    labels, counts = tmp_path / "labels.txt", tmp_path / "counts.json"
    labels.write_text("cat\ndog\nowl\n")
    registry = Registry(home)
    plain = add_model_file(registry, onnx_file, "pets", labels_path=labels).entry
    counts.write_text('{"owl": 7, "cat": 120}')

    entry = add_model_file(registry, onnx_file, "pets", counts_path=counts).entry

    assert np.allclose(np.exp(registry.load_weights(entry.version)[COUNTS]) - 1, [120, 0, 7])
    assert (plain.offer().counts, entry.offer().counts) == (False, True)
    assert entry.plan.steps == plain.plan.steps
    assert entry.version != plain.version
    counts.write_text("[120, 0, 8]")
    assert add_model_file(registry, onnx_file, "pets", counts_path=counts).entry.version != entry.version


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("7", "neither a list"),
        ("[1, 2]", "2 counts for 3 classes"),
        ("[1, 2.5, 3]", "whole numbers"),
        ("[0, 0, 0]", "not all of them zero"),
        ('{"rat": 1}', "'rat'"),
    ],
)
def test_counts_that_are_none(home: Path, tmp_path: Path, onnx_file: Path, text: str, says: str) -> None:
    counts = tmp_path / "counts.json"
    counts.write_text(text)
    registry = Registry(home)

    with pytest.raises(InputError, match=says):
        add_model_file(registry, onnx_file, "pets", counts_path=counts)
    assert registry.list() == ()
