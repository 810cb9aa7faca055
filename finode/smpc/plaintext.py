"""The oracle: a program in the clear, with the same fixed point and the same tables.

It walks the circuit that the parties walk. A party's result may differ from it by a unit in the last place for each
truncation on the way, and in nothing else: ties of truncated values go to the lowest index in both, but what ties here
may differ by that unit there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from finode.errors import InputError
from finode.smpc.circuit import Circuit
from finode.smpc.contribution import PRESENT
from finode.smpc.engine import Floats, Output, Program
from finode.smpc.lowering import lower
from finode.smpc.plan import INPUT
from finode.smpc.sharing import encode, encode_weights, output_shape, read_output
from finode.smpc.weights import PlainWeights, split


def run_plain_statistics(
    program: Program, weights: Sequence[Mapping[str, Floats]], x: Floats, count: int
) -> npt.NDArray[np.int64]:
    """Return the vector of statistics that the parties' shares would sum to, of the first `count` inputs."""
    circuit, secrets, inputs = _plain(program, weights, x)
    if circuit.rest is None:
        raise InputError("the program has no statistics")
    kept: dict[str, Tensor] = {}
    circuit.plain(secrets, inputs, kept)
    present = (torch.arange(program.answers) < count).long()
    elements: npt.NDArray[np.int64] = circuit.rest.plain(secrets, {**kept, PRESENT: present}).numpy()
    return elements


def plain_elements(program: Program, weights: Sequence[Mapping[str, Floats]], x: Floats) -> npt.NDArray[np.int64]:
    """Return the output elements that the parties' shares would sum to."""
    circuit, secrets, inputs = _plain(program, weights, x)
    output = circuit.plain(secrets, inputs)
    elements: npt.NDArray[np.int64] = output.reshape(output_shape(program)).numpy()
    return elements


def _plain(
    program: Program, weights: Sequence[Mapping[str, Floats]], x: Floats
) -> tuple[Circuit, PlainWeights, dict[str, Tensor]]:
    """Return the circuit, the encoded weights, and the circuit's inputs."""
    if x.shape != (program.batch, *program.plans[0].input_shape):
        raise InputError(f"inputs of shape {x.shape} for a program of {program.batch} x {program.plans[0].input_shape}")
    values = []
    for plan, model in zip(program.plans, weights, strict=True):
        encoded = encode_weights(plan, model, program.fractional_bits)
        values.append(split(encoded.data, plan.weights, "the weights"))
    query = torch.from_numpy(encode(x, program.fractional_bits)).unsqueeze(0)
    return lower(program), PlainWeights(values), {INPUT: query}


def run_plaintext(program: Program, weights: Sequence[Mapping[str, Floats]], x: Floats) -> Output:
    """Run `program` on x (batch first) and return what the querier would learn."""
    return read_output(program, plain_elements(program, weights, x))
