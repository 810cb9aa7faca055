"""Plans and votes by CrypTen's operators: what a party computes, and what a dry run walks through.

The models run one after the other, as CrypTen's do; nothing of two models shares a round. Weights and inputs come as
additive shares at scale 2^f and are CrypTen's tensors as they are. Every product is truncated to 2^f at once.

CrypTen's approximations bound what can be computed: exp(x) is (1 + x/256)^256, so a softmax's logits may differ by 512
at most; the reciprocal's iterations converge for a sum of exponentials up to 256, hence the limit on classes; and with
two parties the truncation of an element z at scale 2^2f fails with a probability of |z| / 2^63, for z below 2^43 in
a million elements once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from finode.errors import InputError, ModelError
from finode.smpc.crypten.compat import library
from finode.smpc.crypten.operators import objection
from finode.smpc.engine import Program
from finode.smpc.plan import INPUT, Op, Plan, Step

Weights = Mapping[str, Tensor]
Shared = Any
"""An `MPCTensor`, which is untyped."""


def check(program: Program) -> None:
    """Raise `InputError` or `ModelError` for a program that the engine cannot compute."""
    plans = program.plans
    if not plans or len(plans) != len(program.deployments):
        raise InputError("a program has one deployment for each of its models, and at least one model")
    if any(plan.input_shape != plans[0].input_shape or plan.classes != plans[0].classes for plan in plans):
        raise ModelError("the models of a program differ in their input or their classes")
    if program.vote not in ("soft", "hard") or program.reveal not in ("probabilities", "top1", "label"):
        raise InputError(f"unknown vote {program.vote!r} or reveal {program.reveal!r}")
    if program.statistics:
        raise InputError("the engine 'crypten' computes no statistics", hint="ask the native engine")
    if program.parties < 2 or program.batch < 1:
        raise InputError(f"a program needs two parties and one input, not {program.parties} and {program.batch}")
    for plan in plans:
        if why := objection(plan):
            raise ModelError(f"the engine 'crypten' cannot run a model: {why}", hint="ask the native engine")


def compute(program: Program, weights: Sequence[Weights], x: Tensor) -> Tensor:
    """Return a party's share of the output. `weights` and `x` (batch first) are its shares at scale 2^f."""
    with torch.no_grad():
        ballots = [ballot(program, plan, own, x) for plan, own in zip(program.plans, weights, strict=True)]
        return tally(program, ballots)


def ballot(program: Program, plan: Plan, weights: Weights, x: Tensor) -> Shared:
    """Return one model's vote: probabilities at scale 2^f, or 1 at its label and 0 elsewhere at scale 1.

    Like `tally`, it also takes tensors of torch's `meta` device, which have shapes and no values: a dry run.
    """
    f = program.fractional_bits
    logits = run_plan(plan, {name: shared(weight, f) for name, weight in weights.items()}, shared(x, f))
    return logits.softmax(-1) if program.vote == "soft" else one_hot_of_largest(logits, f)


def tally(program: Program, ballots: Sequence[Shared]) -> Tensor:
    """Return the share of what is revealed: probabilities or counts, the label, or the label and its value."""
    total = ballots[0]
    for vote in ballots[1:]:
        total = total + vote
    if program.reveal == "probabilities":
        return _share(total)
    choice = one_hot_of_largest(total, program.fractional_bits)
    places = torch.arange(program.classes, device=choice.share.device)
    label = (_share(choice) * places).sum(-1, keepdim=True)
    if program.reveal == "label":
        return label
    # The choice is 0 or 1 at scale 1, so the product is not truncated.
    return torch.cat([label, _share((total * choice).sum(-1, keepdim=True))], dim=-1)


def shared(share: Tensor, precision: int) -> Shared:
    """Return a party's share of a value at scale 2^precision as CrypTen's tensor. Nothing is sent."""
    return library().mpc.MPCTensor.from_shares(share, precision=precision)


def _share(x: Shared) -> Tensor:
    share: Tensor = x.share
    return share


def _add_public(x: Shared, elements: Tensor) -> Shared:
    """Return x plus ring elements that all parties know."""
    result = x.clone()
    if result._tensor.rank == 0:
        result.share = result.share + elements
    return result


def one_hot_of_largest(x: Shared, precision: int) -> Shared:
    """Return 1 at the largest element of each row and 0 elsewhere, at scale 1; of equals, at the first.

    CrypTen breaks ties at random. The rows' elements are told apart beforehand: x * 2^k - place, with 2^k places.
    """
    classes = x.size(-1)
    places = torch.arange(classes, device=x.share.device)
    # Whatever the scale of x, comparisons do not mind: but of a value at scale 1 CrypTen's equality test for two
    # parties would encode its result twice.
    apart = shared(_share(x) * (1 << (classes - 1).bit_length()), precision)
    return _add_public(apart, -places).argmax(dim=-1, one_hot=True)


def run_plan(plan: Plan, weights: Mapping[str, Shared], x: Shared) -> Shared:
    """Return the logits of one model."""
    values: dict[str, Shared] = {INPUT: x}
    for step in plan.steps:
        value = HANDLERS[step.op](plan, step, [values[name] for name in step.inputs], weights)
        if tuple(value.size())[1:] != step.output_shape:
            raise ModelError(f"step {step.name!r} gives {tuple(value.size())[1:]}, the plan says {step.output_shape}")
        values[step.output] = value
    return values[plan.output]


def _padded(x: Shared, pads: tuple[int, ...], value: int = 0) -> Shared:
    top, left, bottom, right = pads
    return x.pad((left, right, top, bottom), value=value) if any(pads) else x


def _per_channel(x: Shared, weight: Shared) -> Shared:
    return weight.view(-1, *(1,) * (x.dim() - 2))


def _conv(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    top, left, bottom, right = step.pads or (0, 0, 0, 0)
    x, even = inputs[0], (top, left) == (bottom, right)
    y = (x if even else _padded(x, step.pads)).conv2d(
        weights[step.weight],
        stride=step.strides,
        padding=(top, left) if even else (0, 0),
        dilation=step.dilations,
        groups=step.groups,
    )
    return y + _per_channel(y, weights[step.bias]) if step.bias else y


def _linear(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    y = inputs[0].matmul(weights[step.weight].t())
    return y + weights[step.bias] if step.bias else y


def _scale(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    x = inputs[0]
    y = x * _per_channel(x, weights[step.weight])
    return y + _per_channel(y, weights[step.bias]) if step.bias else y


def _add(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    return inputs[0] + inputs[1]


def _add_weight(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    return inputs[0] + weights[step.weight]


def _relu(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    return inputs[0].relu()


def _max_pool(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    # CrypTen would pad with -256 times the number of parties; the plan promises that no value is as small as this.
    x = _padded(inputs[0], step.pads, -(1 << plan.range_bits))
    if step.kernel == (1, 1):
        return x[:, :, :: step.strides[0], :: step.strides[1]]
    return x.max_pool2d(step.kernel, stride=step.strides)


def _average_pool(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    y = _padded(inputs[0], step.pads).avg_pool2d(step.kernel, stride=step.strides)
    if step.count_include_pad or not any(step.pads):
        return y
    # CrypTen divides by the whole window; windows that lie partly in the padding have fewer values.
    top, left, bottom, right = step.pads
    height, width = inputs[0].size()[-2:]
    inside = functional.pad(torch.ones(1, 1, height, width), (left, right, top, bottom))
    share_of_window = functional.avg_pool2d(inside, step.kernel, step.strides)[0]
    return y * share_of_window.reciprocal().to(y.share.device)


def _global_average_pool(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    x = inputs[0]
    pooled = x.avg_pool2d(tuple(x.size()[-2:]))
    return pooled.view(x.size(0), *step.output_shape)


def _reshape(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    return inputs[0].reshape(inputs[0].size(0), *step.output_shape)


def _softmax(plan: Plan, step: Step, inputs: Sequence[Shared], weights: Mapping[str, Shared]) -> Shared:
    return inputs[0].softmax(-1)


HANDLERS: Mapping[Op, Callable[[Plan, Step, Sequence[Shared], Mapping[str, Shared]], Shared]] = {
    Op.CONV: _conv,
    Op.LINEAR: _linear,
    Op.SCALE: _scale,
    Op.ADD: _add,
    Op.ADD_WEIGHT: _add_weight,
    Op.RELU: _relu,
    Op.MAX_POOL: _max_pool,
    Op.AVERAGE_POOL: _average_pool,
    Op.GLOBAL_AVERAGE_POOL: _global_average_pool,
    Op.RESHAPE: _reshape,
    Op.SOFTMAX: _softmax,
}
