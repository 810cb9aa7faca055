from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finode.errors import InputError, ModelError, RangeExceeded
from finode.models.adding import add_model_file
from finode.models.calibration import calibrate, limits
from finode.models.float_run import run_float
from finode.models.registry import Registry
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
    with pytest.raises(RangeExceeded, match=r"step 'linear1' \(node 'head'\) reaches 3000 .* ends at 2048"):
        add_model_file(registry, onnx_file, "pets", calibration_path=saved(tmp_path / "x.npy", 1500.0))
    assert registry.list() == ()
    # Exactly the limit is outside: |value| < 2^11.
    with pytest.raises(RangeExceeded):
        calibrate(small_import(), np.full((1, 1, 2, 2), 1024.0))
    near = calibrate(small_import(), np.full((1, 1, 2, 2), 1023.0))
    assert 0 < near.margin_bits < 0.01
    assert "larger inputs" in near.warnings[0]


def test_what_is_compared_with_zero_alone_may_be_twice_as_large() -> None:
    nodes = [
        node("Gemm", ["x", "W"], ["h"], name="a"),
        node("Relu", ["h"], ["r"]),
        node("Gemm", ["r", "V"], ["y"], name="b"),
    ]
    found = imported(model(nodes, (BATCH, 2), {"W": 2 * np.eye(2), "V": 0.1 * np.eye(2)}))
    assert limits(found.plan) == {"input": 11, "linear1": 12, "relu1": 12, "linear2": 11}
    assert calibrate(found, np.full((1, 2), 2000.0)).range_bits == 12
    with pytest.raises(RangeExceeded, match="the input reaches 2048"):
        calibrate(found, np.full((1, 2), 2048.0))


def test_what_is_compared_with_each_other_has_the_narrow_range_through_relu() -> None:
    nodes = [
        node("Conv", ["x", "K"], ["c"]),
        node("Relu", ["c"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2]),
        node("Flatten", ["p"], ["y"]),
    ]
    found = imported(model(nodes, (BATCH, 1, 2, 3), {"K": np.ones((1, 1, 1, 1))}))
    assert limits(found.plan) == {
        "input": 11,
        "conv1": 11,
        "relu1": 11,
        "max_pool1": 11,
        "reshape1": 11,
    }


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
