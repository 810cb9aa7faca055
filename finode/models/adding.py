"""All that `finode models add` does: read the file, calibrate, describe the service, register.

Where the registry has a model of the service already, its labels and preprocessing are taken from there, so that the
second model of a service needs no files but its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finode.errors import InputError, WireError
from finode.models.calibration import calibrate, with_range
from finode.models.onnx_import import ImportedModel, import_onnx
from finode.models.preprocess import load_input
from finode.models.registry import ModelEntry, Registry
from finode.models.service_files import load_counts, load_labels, load_preprocess
from finode.smpc.counts import with_counts
from finode.wire.directory import Color, InputSpec, ServiceSpec

_RANDOM_SAMPLES = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class AddReport:
    """What was registered, and how well it fits the fixed-point range.

    `largest` is the value nearest to its limit, written by `largest_step`; a factor of 2^`margin_bits` is left.
    `warnings` are sentences for the owner.
    """

    entry: ModelEntry
    warnings: tuple[str, ...]
    range_bits: int
    margin_bits: float
    largest: float
    largest_step: str
    calibration_samples: int


def add_model_file(
    registry: Registry,
    path: Path,
    service_name: str,
    *,
    labels_path: Path | None = None,
    price: int = 0,
    calibration_path: Path | None = None,
    preprocess_path: Path | None = None,
    counts_path: Path | None = None,
) -> AddReport:
    """Import an ONNX file and register it for a service; see `import_onnx`, `calibrate` and `Registry.add`.

    `counts_path` says how many training samples of each class the model has seen (`service_files.load_counts`).

    Raises `ModelError`, `InputError`, `RangeExceeded` or `StorageFull`; nothing is registered then.
    """
    imported = import_onnx(path)
    service, warnings = _service(registry, imported, service_name, labels_path, preprocess_path)
    if calibration_path is None:
        inputs = _random_inputs(service.input)
        warnings.append(
            "no calibration inputs were given: the range was checked on random ones, which may be unlike real inputs; "
            "give some with --calibration X.npy"
        )
    else:
        inputs = load_input(calibration_path, service.input)
    calibration = calibrate(imported, inputs)
    ranged = with_range(imported, calibration.range_bits)
    if counts_path is not None:
        plan, weights = with_counts(ranged.plan, ranged.weights, load_counts(counts_path, service.classes))
        ranged = replace(ranged, plan=plan, weights=weights)
    entry = registry.add(ranged, service, price)
    return AddReport(
        entry=entry,
        warnings=(*warnings, *calibration.warnings),
        range_bits=calibration.range_bits,
        margin_bits=calibration.margin_bits,
        largest=calibration.largest,
        largest_step=calibration.step,
        calibration_samples=calibration.samples,
    )


def _service(
    registry: Registry,
    imported: ImportedModel,
    name: str,
    labels_path: Path | None,
    preprocess_path: Path | None,
) -> tuple[ServiceSpec, list[str]]:
    known = registry.service(name)
    warnings: list[str] = []
    if labels_path is not None:
        labels = load_labels(labels_path)
    elif known is not None:
        labels = known.classes
    else:
        labels = tuple(str(index) for index in range(imported.classes_count))
    try:
        if preprocess_path is not None:
            spec = load_preprocess(preprocess_path).spec(imported.input_shape)
        elif known is not None:
            spec = known.input
        else:
            spec = InputSpec(shape=imported.input_shape)
            if len(spec.shape) == 3 and spec.shape[0] in (1, 3):
                warnings.append(
                    "without a preprocessing file the service takes arrays only; if its inputs are images, say how "
                    "they become tensors with --preprocess FILE"
                )
        return ServiceSpec(name=name, input=spec, classes=labels), warnings
    except WireError as error:
        raise InputError(f"service {name!r}: {error.message}") from None


def _random_inputs(spec: InputSpec) -> npt.NDArray[np.float64]:
    """Return inputs of about the size of real ones: noise in bytes for images, standard normal otherwise."""
    # No secret: the same inputs every time, so that the same model gets the same verdict.
    generator = np.random.default_rng(0)
    shape = (_RANDOM_SAMPLES, *spec.shape)
    if spec.color is Color.NONE:
        return generator.standard_normal(shape)
    tensor = generator.integers(0, 256, shape) * spec.scale
    if spec.mean:
        tensor = tensor - np.reshape(spec.mean, (-1, 1, 1))
    if spec.deviation:
        tensor = tensor / np.reshape(spec.deviation, (-1, 1, 1))
    return np.asarray(tensor, dtype=np.float64)
