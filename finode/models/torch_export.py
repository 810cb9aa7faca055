"""A torch module to ONNX bytes, through `torch.onnx.export`; torch and onnxscript are imported only here, on use."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import TYPE_CHECKING

from finode.errors import ModelError

if TYPE_CHECKING:
    import torch

# Every operator that the import knows has its present meaning there, and other tools read it too.
OPSET = 20


def export_module(module: torch.nn.Module, example_input: torch.Tensor) -> bytes:
    """Return `module` as an ONNX file's bytes, in evaluation mode and with a dynamic batch.

    `example_input` is one batch, (n, ...); its values do not matter. The module is left in the mode it was in. Raises
    `ModelError` if torch cannot export it, or onnxscript is not installed.
    """
    import torch

    if example_input.ndim < 2 or len(example_input) == 0:
        raise ModelError(
            f"the example input has the shape {tuple(example_input.shape)}", hint="give a batch: (n, ...), n at least 1"
        )
    # torch.export takes a batch of 1 for a constant, not for a dimension that may vary.
    example = torch.cat([example_input, example_input]) if len(example_input) == 1 else example_input
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        with _quiet(), torch.no_grad():
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                opset_version=OPSET,
                verbose=False,
            )
    except ImportError as error:
        raise ModelError(
            f"torch cannot export to ONNX: {error}", hint="install onnxscript: pip install 'finode[demo]'"
        ) from None
    except (RuntimeError, ValueError, TypeError, torch.onnx.OnnxExporterError) as error:
        raise ModelError(
            f"torch cannot export {type(module).__name__} to ONNX: {_first_line(error)}",
            hint="the module must map one batch to one batch, without branches on values",
        ) from error
    finally:
        for child, training in modes.items():
            child.training = training
    if program is None:
        raise ModelError(f"torch gave no ONNX program for {type(module).__name__}")
    data: bytes = program.model_proto.SerializeToString()
    return data


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter: it reports missing torchvision, which nobody asked for, and its own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
