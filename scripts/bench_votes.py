"""How good the votes are under label skew: `python scripts/bench_votes.py`.

scikit-learn's digits are dealt out class by class in Dirichlet(alpha) proportions, one small MLP is trained on each
part, and the held-out digits are answered with every vote by the engine's oracle: the same fixed point as on shares,
in the clear. Accuracies are means over seeds; data, split and training follow from the seed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import click
import numpy as np
import torch
from torch import nn

from finode.config import QuerierSection
from finode.node.augmenting import with_copies
from finode.smpc.counts import with_counts
from finode.smpc.engine import Program
from finode.smpc.native import NativeEngine
from finode.smpc.plan import INPUT, Op, Plan, Step, WeightSpec
from finode.testnet.digits import CLASSES, INPUT_SHAPE, Floats, Integers, load_images, split, train_classifier
from finode.wire.directory import InputSpec

ALPHAS = (0.1, 0.3, 0.5, 1.0, 10.0)
OWNERS = 5
TEST_SAMPLES = 360
COPIES = 3
HIDDEN = 48
VOTES = ("soft", "hard", "weighted", "entropy", "spectral", "augmented", "prior")
COLUMNS = ("best single", *VOTES, "oracle")


@dataclass(frozen=True, slots=True)
class Trained:
    """One owner's model and how many samples of each class it was trained on."""

    plan: Plan
    weights: dict[str, Floats]
    counts: tuple[int, ...]

    @classmethod
    def on(cls, images: Floats, labels: Integers) -> Trained:
        """Train a perceptron with torch's generator as it is."""
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
        train_classifier(module, images, labels)
        values = [value.detach().double().numpy() for value in module.parameters()]
        weights = dict(zip(("w1", "b1", "w2", "b2"), values, strict=True))
        counts = tuple(int(count) for count in np.bincount(labels, minlength=CLASSES))
        return cls(*with_counts(_plan(weights), weights, counts), counts)


def _plan(weights: dict[str, Floats]) -> Plan:
    def linear(name: str, source: str, output: str, width: int) -> Step:
        shape = (width,)
        return Step(
            op=Op.LINEAR,
            name=f"linear{name}",
            inputs=(source,),
            output=output,
            output_shape=shape,
            weight=f"w{name}",
            bias=f"b{name}",
        )

    return Plan(
        input_shape=INPUT_SHAPE,
        classes=CLASSES,
        steps=(
            Step(op=Op.RESHAPE, name="flatten", inputs=(INPUT,), output="flat", output_shape=(64,)),
            linear("1", "flat", "hidden", HIDDEN),
            Step(op=Op.RELU, name="relu", inputs=("hidden",), output="active", output_shape=(HIDDEN,)),
            linear("2", "active", "logits", CLASSES),
        ),
        weights=tuple(WeightSpec(name=name, shape=value.shape) for name, value in weights.items()),
        output="logits",
        softmax_at_end=False,
    )


def answered(models: list[Trained], vote: str, inputs: Floats) -> Integers:
    """Return the labels that the vote of these models gives."""
    copies = COPIES if vote == "augmented" else 0
    settings = QuerierSection(flip=False)  # the mirror image of a digit is no digit
    rows = with_copies(inputs, copies, InputSpec(shape=INPUT_SHAPE), settings, np.random.default_rng(0))
    program = Program(
        plans=tuple(model.plan for model in models),
        deployments=tuple(bytes([index]) * 32 for index in range(len(models))),
        parties=2,
        batch=len(rows),
        fractional_bits=16,
        vote=vote,
        reveal="label",
        vote_weights=tuple(sum(model.counts) for model in models) if vote == "weighted" else (),
        copies=copies,
        gamma=round(settings.gamma * 256) if copies else 0,
    )
    return NativeEngine().plaintext(program, [model.weights for model in models], rows).labels


def accuracies(alpha: float, seed: int) -> dict[str, float]:
    """Return the accuracy of every column for one split."""
    images, labels = load_images()
    order = np.random.default_rng([seed, 0]).permutation(len(images))
    test, rest = order[:TEST_SAMPLES], order[TEST_SAMPLES:]
    models = []
    for index, part in enumerate(split(labels[rest], owners=OWNERS, alpha=alpha, seed=seed)):
        torch.manual_seed(seed * 1009 + index)
        models.append(Trained.on(images[rest[part]], labels[rest[part]]))
    right = {vote: answered(models, vote, images[test]) == labels[test] for vote in VOTES}
    alone = np.stack([answered([model], "soft", images[test]) == labels[test] for model in models])
    found = {vote: float(hits.mean()) for vote, hits in right.items()}
    return found | {"best single": float(alone.mean(axis=1).max()), "oracle": float(alone.any(axis=0).mean())}


def table(seeds: int) -> Iterator[str]:
    """Yield the lines of the Markdown table, as they are measured: means, and the standard error of prior - soft."""
    yield "| alpha | " + " | ".join(COLUMNS) + " | prior - soft |"
    yield "| --- " * (len(COLUMNS) + 2) + "|"
    for alpha in ALPHAS:
        found = [accuracies(alpha, seed) for seed in range(seeds)]
        gains = [each["prior"] - each["soft"] for each in found]
        means = (f"{fmean(each[column] for each in found):.3f}" for column in COLUMNS)
        error = f" +- {stdev(gains) / seeds**0.5:.3f}" if seeds > 1 else ""
        yield f"| {alpha:g} | " + " | ".join(means) + f" | {fmean(gains):+.3f}{error} |"


@click.command()
@click.option("--seeds", type=click.IntRange(1, 1000), default=10, show_default=True, help="Splits for each mean.")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write the table there, too.")
def main(seeds: int, out: Path | None) -> None:
    """Print a table of the votes' accuracies under label skew."""
    torch.set_num_threads(1)  # nets this small are faster so, and come out the same on every machine
    lines = []
    for line in table(seeds):
        click.echo(line)
        lines.append(line)
    if out is not None:
        out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
