"""`finode models add | list | show | rm`: work on the home's registry; a running daemon is told of changes."""

from __future__ import annotations

from pathlib import Path

import anyio
import click

from .options import home_option, json_option, resolved
from .output import print_fields, print_json, print_table, shape_text, short_hash, time_text, warn

_file = click.Path(path_type=Path)


@click.group()
def models() -> None:
    """Add, list, show and remove your models."""


@models.command()
@click.argument("model", type=_file, metavar="MODEL.onnx")
@click.option("--service", required=True, metavar="NAME", help="The service that the model answers for.")
@click.option("--labels", type=_file, metavar="FILE", help="The classes' names: one a line, or a JSON list.")
@click.option("--price", type=click.IntRange(min=0), default=0, show_default=True, help="Micro-credits per input.")
@click.option("--calibration", type=_file, metavar="X.npy", help="Typical inputs, to check the number range with.")
@click.option("--preprocess", type=_file, metavar="FILE", help="TOML: how an image becomes a tensor.")
@click.option("--counts", type=_file, metavar="FILE", help="JSON: training samples by class; shared as secrets.")
@home_option
@json_option
def add(
    model: Path,
    service: str,
    labels: Path | None,
    price: int,
    calibration: Path | None,
    preprocess: Path | None,
    counts: Path | None,
    home: Path | None,
    as_json: bool,
) -> None:
    """Register an ONNX model for a service. Its weights stay here, but as uniform shares."""
    from finode.daemon.admin import add_model

    path = resolved(home)
    added = add_model(
        path,
        model,
        service,
        labels_path=labels,
        price=price,
        calibration_path=calibration,
        preprocess_path=preprocess,
        counts_path=counts,
    )
    for text in added.warnings:
        warn(text)
    told = _poke(path)
    if as_json:
        print_json(added)
        return
    print_fields(
        [
            ("version", added.model.version),
            ("service", added.model.service),
            ("input", shape_text(added.model.input_shape)),
            ("classes", len(added.model.classes)),
            ("parameters", f"{added.model.parameters:,}"),
            (
                "range",
                f"values below 2^{added.model.range_bits}; largest seen {added.largest:.4g} in {added.largest_step}, "
                f"{added.margin_bits:.1f} bits to spare ({added.calibration_samples} samples)",
            ),
            ("offered", "now" if told else "when the node starts with the role owner"),
        ]
    )


@models.command("list")
@home_option
@json_option
def list_(home: Path | None, as_json: bool) -> None:
    """List the models of this home."""
    from finode.daemon.admin import list_models

    found = list_models(resolved(home))
    if as_json:
        print_json(found)
        return
    print_table(
        ("version", "service", "input", ">classes", ">parameters", ">price", "added"),
        (
            (
                short_hash(model.version),
                model.service,
                shape_text(model.input_shape),
                len(model.classes),
                f"{model.parameters:,}",
                model.price,
                time_text(model.added),
            )
            for model in found
        ),
        empty="no models; `finode models add MODEL.onnx --service NAME` adds one",
    )


@models.command()
@click.argument("version")
@home_option
@json_option
def show(version: str, home: Path | None, as_json: bool) -> None:
    """Show one model and its public plan. VERSION may be its first digits."""
    from finode.daemon.admin import show_model

    detail = show_model(resolved(home), version)
    if as_json:
        print_json(detail)
        return
    model = detail.model
    print_fields(
        [
            ("version", model.version),
            ("service", model.service),
            ("price", f"{model.price} micro-credits per input"),
            ("input", f"{shape_text(detail.input.shape)}, color {detail.input.color.value}"),
            ("classes", ", ".join(model.classes)),
            ("parameters", f"{model.parameters:,}"),
            ("operators", ", ".join(model.operators)),
            ("softmax at end", "yes" if model.softmax_at_end else "no"),
            ("range", f"values below 2^{model.range_bits}"),
            ("added", time_text(model.added)),
            ("weights", detail.weights_file),
        ]
    )
    print_table(
        ("step", "operation", "output"),
        ((step.name, step.operation, shape_text(step.output_shape)) for step in detail.plan),
        empty="",
    )


@models.command()
@click.argument("version")
@home_option
def rm(version: str, home: Path | None) -> None:
    """Remove a model and its weights; parties drop its shares. VERSION may be its first digits."""
    from finode.daemon.admin import remove_model

    path = resolved(home)
    removed = remove_model(path, version)
    told = _poke(path)
    click.echo(f"removed {short_hash(removed.version)} of service {removed.service}")
    if told:
        click.echo("the running node withdraws it")


def _poke(home: Path) -> bool:
    """Have a running daemon read the registry again. What was changed stays changed if it cannot."""
    from finode.daemon.admin import poke
    from finode.errors import FinodeError

    try:
        return anyio.run(poke, home)
    except FinodeError as error:
        warn(f"the change is made, but the running node did not take it up: {error}")
        return False
