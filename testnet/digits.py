"""The demo's federation of digits: organizations with uneven data, each with a small model of its own kind.

scikit-learn's digits (1797 images of 8 x 8 pixels) are cut into a test part, which nobody trains on, and a training
part, which is dealt out class by class in Dirichlet proportions: with alpha = 0.5 an organization sees much of some
digits and little of others, so that their models need one another. Five architectures, CNNs and MLPs, are trained with
torch and exported to ONNX, as an organization would do it with a model of its own.

Everything follows from the seed. torch and scikit-learn are imported in `prepare`; what it returns is numpy.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from finode.errors import ConfigError, ModelError

if TYPE_CHECKING:
    from torch import Tensor, nn

CLASSES = 10
INPUT_SHAPE = (1, 8, 8)
VOTES = ("soft", "prior")
"""Votes of which `combined` knows what they come to."""
MIN_SAMPLES = 20
MIN_CLASSES = 2

# A fifth of the images is kept from all owners: enough to tell their accuracies apart.
_TEST_SAMPLES = 360
_PIXEL_MAXIMUM = 16.0
_TRIES = 1000
_STEPS = 300
_BATCH = 64
_LEARNING_RATE = 0.01
# Keeps the logits, and so the fixed-point range, small; it costs no accuracy on data like these.
_WEIGHT_DECAY = 1e-3
_MLP = 2
"""The plain MLP among the architectures: where owners are compared, only their data should differ."""

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Progress = Callable[[str, int, int], None]
"""Is told what was just done, how much of it, and how much there is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedModel:
    """One organization's model. `accuracy` is on the test part; `label_counts` are its own samples of each digit."""

    organization: str
    path: Path
    architecture: str
    accuracy: float
    samples: int
    label_counts: tuple[int, ...]

    @property
    def counts_path(self) -> Path:
        """Where its counts lie, as `finode models add --counts` takes them."""
        return self.path.with_suffix(".counts.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsFederation:
    """Models on disk, and held-out digits to ask for: `inputs` (n, 1, 8, 8) in [0, 1], `labels` (n,).

    `plaintext_probabilities` (n, 10) is what `vote` makes of all models' probabilities: what the private answer must
    equal.
    """

    models: tuple[TrainedModel, ...]
    inputs: Floats = field(repr=False)
    labels: Integers = field(repr=False)
    plaintext_probabilities: Floats = field(repr=False)
    vote: str = "soft"

    def plaintext_accuracy(self) -> float:
        """Return the share of the held-out digits that the plaintext vote names rightly."""
        return float((self.plaintext_probabilities.argmax(axis=1) == self.labels).mean())


def prepare(
    directory: Path,
    *,
    owners: int = 5,
    alpha: float = 0.5,
    seed: int = 0,
    held_out: int = 32,
    organizations: Sequence[str] = (),
    vote: str = "soft",
    on_progress: Progress | None = None,
) -> DigitsFederation:
    """Split the digits over `owners`, train and export a model for each into `directory`.

    `organizations` are the owners' names, one for each; "owner-1" and so on if there are none. Of `held_out` digits
    the first 360 are those that nobody trained on; who asks for more gets digits of the owners' own beside them.
    `vote` is one of `VOTES`. Beside each model lies `TrainedModel.counts_path`, its training counts.

    Raises `ConfigError` if scikit-learn or onnxscript is missing, or the digits cannot be split so.
    """
    import torch

    images, labels = load_images()
    order = np.random.default_rng([seed, 0]).permutation(len(images))
    test, train = order[:_TEST_SAMPLES], order[_TEST_SAMPLES:]
    names = tuple(organizations) or tuple(f"owner-{index + 1}" for index in range(owners))
    if len(names) != owners:
        raise ConfigError(f"{len(names)} names for {owners} owners")
    if not 0 < held_out <= len(images):
        raise ConfigError(f"held_out is {held_out}; it must be 1 to {len(images)}")
    parts = split(labels[train], owners=owners, alpha=alpha, seed=seed)
    directory.mkdir(parents=True, exist_ok=True)

    asked = order[:held_out]
    answers: list[Floats] = []
    models: list[TrainedModel] = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # nets this small are faster so, and come out the same on every machine
    try:
        for index, (name, part) in enumerate(zip(names, parts, strict=True)):
            own = train[part]
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed * 1009 + index)
                architecture, module, with_softmax = _architecture(index)
                train_classifier(module, images[own], labels[own])
            predictions = _probabilities(module, images[test])
            answers.append(_probabilities(module, images[asked]))
            path = directory / f"digits-{index + 1}.onnx"
            _export(module, with_softmax, path)
            counts = np.bincount(labels[own], minlength=CLASSES)
            path.with_suffix(".counts.json").write_text(json.dumps(counts.tolist()), encoding="utf-8")
            models.append(
                TrainedModel(
                    organization=name,
                    path=path,
                    architecture=architecture,
                    accuracy=float((predictions.argmax(axis=1) == labels[test]).mean()),
                    samples=len(own),
                    label_counts=tuple(int(count) for count in counts),
                )
            )
            if on_progress is not None:
                on_progress(f"{name} trained {architecture}", index + 1, owners)
    finally:
        torch.set_num_threads(threads)
    return DigitsFederation(
        models=tuple(models),
        inputs=images[asked],
        labels=labels[asked],
        plaintext_probabilities=combined(np.stack(answers), [model.label_counts for model in models], vote),
        vote=vote,
    )


def combined(probabilities: Floats, counts: Sequence[Sequence[int]], vote: str) -> Floats:
    """Return what a vote makes of the models' probabilities (models, n, classes), in floating point.

    "soft" is their mean. "prior" takes each model's prior away, p / (counts + 1), weighs it by counts + 1 class by
    class, and has every row add up to 1.
    """
    if vote == "soft":
        return np.asarray(probabilities.mean(axis=0))
    seen = np.asarray(counts, dtype=np.float64)[:, None] + 1
    corrected = probabilities / seen
    corrected /= corrected.sum(axis=-1, keepdims=True)
    scores = (seen * corrected).sum(axis=0) / seen.sum(axis=0)
    return np.asarray(scores / scores.sum(axis=-1, keepdims=True))


def split(labels: Integers, *, owners: int, alpha: float, seed: int) -> tuple[Integers, ...]:
    """Deal the samples out: for each owner the indices of its own, class by class in Dirichlet(alpha) proportions.

    Every sample goes to one owner. Drawn again until each has `MIN_SAMPLES` of `MIN_CLASSES` classes; raises
    `ConfigError` if that does not happen.
    """
    if owners < 1 or alpha <= 0:
        raise ConfigError(f"cannot split over {owners} owners with alpha = {alpha}")
    generator = np.random.default_rng([seed, 1])
    for _ in range(_TRIES if owners * MIN_SAMPLES <= len(labels) else 0):
        parts: list[list[int]] = [[] for _ in range(owners)]
        for label in np.unique(labels):
            members = generator.permutation(np.flatnonzero(labels == label))
            shares = generator.dirichlet(np.full(owners, alpha))
            cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
            for part, chunk in zip(parts, np.split(members, cuts), strict=True):
                part.extend(int(index) for index in chunk)
        indices = [np.sort(np.asarray(part, dtype=np.int64)) for part in parts]
        if all(len(part) >= MIN_SAMPLES and len(np.unique(labels[part])) >= MIN_CLASSES for part in indices):
            return tuple(indices)
    raise ConfigError(
        f"{len(labels)} samples do not split over {owners} owners with alpha = {alpha} so that each has {MIN_SAMPLES}",
        hint="take fewer owners or a larger alpha",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AnsweringModels:
    """Equal models of uneven parts, on disk, and how they answer images that nobody trained on.

    `inputs` (n, 1, 8, 8) and `labels` (n,) are the images, `answers` (models, n, classes) the probabilities that the
    models of `paths` give them in floating point.
    """

    paths: tuple[Path, ...]
    inputs: Floats = field(repr=False)
    labels: Integers = field(repr=False)
    answers: Floats = field(repr=False)


def answers(*, owners: int, alpha: float, seed: int, queries: int) -> tuple[Floats, Integers]:
    """Train an MLP for each owner of a split and return their answers to `queries` images that no owner has.

    Returns the probabilities (owners, queries, 10) and the true labels (queries,). Raises as `prepare`.
    """
    images, labels = _asked(seed, queries)
    given = [_probabilities(module, images) for module in _mlps(owners, alpha, seed, queries)]
    return np.stack(given), labels


def export_answering(directory: Path, *, owners: int, alpha: float, seed: int, queries: int) -> AnsweringModels:
    """Do what `answers` does, and export the MLPs into `directory`. Raises as `prepare`."""
    images, labels = _asked(seed, queries)
    directory.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    given: list[Floats] = []
    for index, module in enumerate(_mlps(owners, alpha, seed, queries)):
        given.append(_probabilities(module, images))
        paths.append(directory / f"mlp-{index + 1}.onnx")
        _export(module, False, paths[-1])
    return AnsweringModels(paths=tuple(paths), inputs=images, labels=labels, answers=np.stack(given))


def _asked(seed: int, queries: int) -> tuple[Floats, Integers]:
    images, labels = load_images()
    order = np.random.default_rng([seed, 0]).permutation(len(images))[:queries]
    return images[order], labels[order]


def _mlps(owners: int, alpha: float, seed: int, queries: int) -> Iterator[nn.Module]:
    """Yield a trained MLP for each owner of a split of all images but the first `queries` of the seed's order."""
    import torch

    images, labels = load_images()
    train = np.random.default_rng([seed, 0]).permutation(len(images))[queries:]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for index, part in enumerate(split(labels[train], owners=owners, alpha=alpha, seed=seed)):
            own = train[part]
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(seed * 1009 + index)
                module = _architecture(_MLP)[1]
                train_classifier(module, images[own], labels[own])
            yield module
    finally:
        torch.set_num_threads(threads)


def load_images() -> tuple[Floats, Integers]:
    """Return all digits, (n, 1, 8, 8) in [0, 1], and their labels; raise `ConfigError` without scikit-learn."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError(
            f"the demo's data come with scikit-learn: {error}", hint="pip install 'finode[demo]'"
        ) from None
    digits = load_digits()
    images = np.asarray(digits.images, dtype=np.float64).reshape(-1, *INPUT_SHAPE) / _PIXEL_MAXIMUM
    return images, np.asarray(digits.target, dtype=np.int64)


def _architecture(index: int) -> tuple[str, nn.Module, bool]:
    """Return a name, a fresh module, and whether the organization exports it with its softmax."""
    from torch import nn

    def cnn_max_pool() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, CLASSES)
        )

    def cnn_batch_norm() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(128, CLASSES),
        )

    def mlp() -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU(), nn.Linear(24, CLASSES)
        )

    def cnn_strided() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(64, CLASSES),
        )

    def mlp_dropout() -> nn.Module:
        return nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2), nn.Linear(64, CLASSES)
        )

    kinds: Sequence[tuple[str, Callable[[], nn.Module], bool]] = (
        ("CNN, max-pool", cnn_max_pool, True),
        ("CNN, batch-norm, average-pool", cnn_batch_norm, False),
        ("MLP 64-48-24", mlp, False),
        ("CNN, strided, max-pool", cnn_strided, True),
        ("MLP 64-64, batch-norm, dropout", mlp_dropout, False),
    )
    name, make, with_softmax = kinds[index % len(kinds)]
    return name, make(), with_softmax


def train_classifier(module: nn.Module, images: Floats, labels: Integers) -> None:
    """Train a classifier of digits on some of them; torch's generator decides on the order."""
    import torch

    x, y = torch.from_numpy(images).float(), torch.from_numpy(labels)
    optimizer = torch.optim.Adam(module.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    module.train()
    for _ in range(_STEPS):
        chosen = torch.randint(len(x), (_BATCH,))
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x[chosen]), y[chosen])
        torch.autograd.backward(loss)
        optimizer.step()
    module.eval()


def _probabilities(module: nn.Module, images: Floats) -> Floats:
    import torch

    with torch.no_grad():
        logits: Tensor = module(torch.from_numpy(images).float())
        return np.asarray(torch.softmax(logits.double(), dim=1).numpy(), dtype=np.float64)


def _export(module: nn.Module, with_softmax: bool, path: Path) -> None:
    import torch
    from torch import nn

    whole = nn.Sequential(module, nn.Softmax(dim=1)).eval() if with_softmax else module
    with _quiet():
        try:
            program = torch.onnx.export(
                whole,
                (torch.zeros(2, *INPUT_SHAPE),),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                verbose=False,
            )
        except ImportError as error:
            raise ConfigError(f"torch cannot export to ONNX: {error}", hint="pip install 'finode[demo]'") from None
    if program is None:
        raise ModelError(f"torch gave no ONNX program for {path}")
    path.write_bytes(program.model_proto.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: it reports missing torchvision, and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
