"""What the commands do to a home, with or without a daemon that runs on it: its models and its roster.

Registry and roster are files that a daemon and a command may use at once; after a change the commands have a running
daemon read them again (`poke`). What is heavy (onnx) is imported by the function that needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finode import config
from finode.client import Client, ModelView
from finode.client.address import read_api_address
from finode.config import IDENTITY_NAME
from finode.errors import IdentityError
from finode.identity import Identity, PeerId
from finode.models.preprocess import load_input
from finode.models.registry import ModelEntry, Registry
from finode.net.roster import add_peer, remove_peer
from finode.node.views import model_view
from finode.wire.directory import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class AddedModel:
    """A model that was registered, and how well it fits the fixed-point range.

    A factor of 2^`margin_bits` is left between `largest`, the value nearest to its limit (written by `largest_step`),
    and that limit. `warnings` are sentences for the owner.
    """

    model: ModelView
    warnings: tuple[str, ...]
    margin_bits: float
    largest: float
    largest_step: str
    calibration_samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepLine:
    """One step of a model's public plan."""

    name: str
    operation: str
    output_shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelDetail:
    """A model, how its service's inputs become tensors, and its plan."""

    model: ModelView
    input: InputSpec
    plan: tuple[StepLine, ...]
    weights_file: str


def peer_id(home: Path) -> PeerId:
    """Return the peer id of a home; raise `IdentityError` if it has no identity."""
    return Identity.load(home / IDENTITY_NAME).peer_id


def add_model(
    home: Path,
    path: Path,
    service: str,
    *,
    labels_path: Path | None = None,
    price: int = 0,
    calibration_path: Path | None = None,
    preprocess_path: Path | None = None,
    counts_path: Path | None = None,
) -> AddedModel:
    """Import an ONNX file and register it for a service of this owner.

    Raises `ModelError`, `InputError`, `RangeExceeded` or `StorageFull`; nothing is registered then.
    """
    from finode.models.adding import add_model_file

    report = add_model_file(
        _registry(home),
        path,
        service,
        labels_path=labels_path,
        price=price,
        calibration_path=calibration_path,
        preprocess_path=preprocess_path,
        counts_path=counts_path,
    )
    return AddedModel(
        model=model_view(report.entry),
        warnings=report.warnings,
        margin_bits=report.margin_bits,
        largest=report.largest,
        largest_step=report.largest_step,
        calibration_samples=report.calibration_samples,
    )


def list_models(home: Path) -> tuple[ModelView, ...]:
    """Return the models of a home by service and time."""
    return tuple(model_view(entry) for entry in _registry(home).list())


def show_model(home: Path, version: str) -> ModelDetail:
    """Return the model whose version starts with these digits; raise `ModelError` for none or several."""
    entry = _registry(home).find(version)
    return ModelDetail(
        model=model_view(entry),
        input=entry.service.input,
        plan=tuple(
            StepLine(name=step.name, operation=step.op.value, output_shape=step.output_shape)
            for step in entry.plan.steps
        ),
        weights_file=str(entry.weights_path),
    )


def remove_model(home: Path, version: str) -> ModelView:
    """Remove the model whose version starts with these digits, with its weights; return what it was."""
    registry = _registry(home)
    removed: ModelEntry = registry.remove(registry.find(version).version)
    return model_view(removed)


def trust_peer(home: Path, peer: str, organization: str) -> bool:
    """Put a peer on the home's roster, or give it another organization; False if it stood there so already."""
    return add_peer(_roster_path(home), peer, organization)


def distrust_peer(home: Path, peer: str) -> bool:
    """Take a peer off the home's roster; False if it was not on it."""
    return remove_peer(_roster_path(home), peer)


async def poke(home: Path) -> bool:
    """Have the daemon that runs on `home` read roster and models again; False if none runs."""
    if read_api_address(home) is None:
        return False
    async with Client(home=home) as client:
        await client.reload()
    return True


def load_query_input(path: Path, spec: InputSpec) -> npt.NDArray[np.float64]:
    """Return the tensor (batch, *spec.shape) of a .npy, .json or image file, as the service states it."""
    return load_input(path, spec)


def _registry(home: Path) -> Registry:
    _require_home(home)
    return Registry(home)


def _roster_path(home: Path) -> Path:
    _require_home(home)
    return config.load(home).roster_path


def _require_home(home: Path) -> None:
    # A registry or a roster beside no identity would belong to nobody: most likely the path is mistyped.
    if not (home / IDENTITY_NAME).exists():
        raise IdentityError(f"{home} is not the home of a node", hint=f"`finode init --home {home}` makes one")
