"""Request bodies and the tensors in them, checked: every problem is an `InputError` that names the field.

Two ways of writing a tensor: that of the Open Inference Protocol (`data` as numbers in JSON, flat or nested) and the
compact one of `POST /finode/v1/queries` (base64 of little-endian bytes), which is ten times faster to read. Either
way the result is (batch, *shape) float64, finite; a single input without the batch dimension becomes a batch of one,
and bytes (uint8) for an image service are images, exactly as in a file for `finode query`.
"""

from __future__ import annotations

import math
from contextlib import aclosing
from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import trio
from starlette.requests import ClientDisconnect, Request

from finode.errors import InputError, MessageTooLarge, UnknownService
from finode.models.preprocess import to_tensor
from finode.node.interface import QueryRequest, ServiceView
from finode.wire.committee import MAX_COPIES, MAX_GAMMA, MAX_PARTIES, Reveal, Vote

T = TypeVar("T")
MAX_DIMENSIONS: Final = 8
BODY_TIMEOUT_S: Final = 30.0  # longest pause of a client between two pieces of its body
DATATYPES: Final = {
    "BOOL": "|b1",
    "UINT8": "<u1",
    "UINT16": "<u2",
    "UINT32": "<u4",
    "UINT64": "<u8",
    "INT8": "<i1",
    "INT16": "<i2",
    "INT32": "<i4",
    "INT64": "<i8",
    "FP16": "<f2",
    "FP32": "<f4",
    "FP64": "<f8",
}
COMPACT_DTYPES: Final = ("<f8", "<f4", "<f2", "|u1", "|i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8")

Parties = Annotated[int, msgspec.Meta(ge=2, le=MAX_PARTIES)]
Deadline = Annotated[float, msgspec.Meta(gt=0, le=3600)]
Engine = Literal["native", "crypten"]
Copies = Annotated[int, msgspec.Meta(ge=1, le=MAX_COPIES)]
Gamma = Annotated[float, msgspec.Meta(ge=-MAX_GAMMA, le=MAX_GAMMA)]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How a query is to be run; what is left out is the node's own setting. Names it does not know are let be."""

    parties: Parties | None = None
    vote: Vote = Vote.SOFT
    reveal: Reveal = Reveal.PROBABILITIES
    deadline_s: Deadline | None = None
    engine: Engine | None = None
    weights: dict[str, float] | None = None
    copies: Copies | None = None
    gamma: Gamma | None = None


class CompactQuery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The body of `POST /finode/v1/queries`."""

    service: str
    shape: tuple[int, ...]
    dtype: str
    data: bytes
    parties: Parties | None = None
    vote: Vote = Vote.SOFT
    reveal: Reveal = Reveal.PROBABILITIES
    deadline_s: Deadline | None = None
    engine: Engine | None = None
    weights: dict[str, float] | None = None
    copies: Copies | None = None
    gamma: Gamma | None = None


class InferInput(msgspec.Struct, frozen=True, kw_only=True):
    """One tensor of an Open Inference Protocol request."""

    name: str
    shape: tuple[int, ...]
    datatype: str
    data: list[Any]
    parameters: dict[str, Any] | None = None


class InferOutput(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor that the request wants back."""

    name: str
    parameters: dict[str, Any] | None = None


class InferRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of `POST /v2/models/{service}/infer`."""

    inputs: list[InferInput]
    id: str | None = None
    parameters: Options | None = None
    outputs: list[InferOutput] | None = None


async def read_body(request: Request, limit: int) -> bytes:
    """Return the request's body; raise `MessageTooLarge` before more than `limit` bytes of it are held."""
    too_large = MessageTooLarge(
        f"the request is larger than {limit} bytes", hint="ask in smaller batches, or raise [api] max_body_mb"
    )
    announced = request.headers.get("content-length", "0")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    body = bytearray()
    try:
        async with aclosing(request.stream()) as pieces:
            while True:
                with trio.fail_after(BODY_TIMEOUT_S):
                    piece = await anext(pieces, None)
                if piece is None:
                    return bytes(body)
                body += piece
                if len(body) > limit:
                    raise too_large
    except trio.TooSlowError:
        raise InputError(f"the rest of the request did not come within {BODY_TIMEOUT_S:.0f} s") from None
    except ClientDisconnect:
        raise InputError("the client went away before its request was complete") from None


def parse(body: bytes, as_type: type[T]) -> T:
    """Return the typed value of a JSON body."""
    try:
        return msgspec.json.decode(body, type=as_type)
    except msgspec.ValidationError as error:
        raise InputError(f"the request is wrong: {error}") from None
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InputError(f"the request is not valid JSON: {error}") from None


def compact_request(body: bytes, services: tuple[ServiceView, ...]) -> QueryRequest:
    """Return the query that a compact body asks for."""
    query = parse(body, CompactQuery)
    service = find(query.service, services)
    if query.dtype not in COMPACT_DTYPES:
        raise InputError(f"dtype {query.dtype!r} is not one of {', '.join(COMPACT_DTYPES)}")
    dtype = np.dtype(query.dtype)
    count = _count(query.shape, "shape")
    if count * dtype.itemsize != len(query.data):
        raise InputError(
            f"data has {len(query.data)} bytes, but shape {_text(query.shape)} of {query.dtype} takes "
            f"{count * dtype.itemsize}"
        )
    array = np.frombuffer(query.data, dtype).reshape(query.shape)
    return QueryRequest(
        service=service.name,
        inputs=to_tensor(array, service.input, "the input"),
        parties=query.parties,
        vote=query.vote.value,
        reveal=query.reveal.value,
        deadline_s=query.deadline_s,
        engine=query.engine,
        weights=query.weights,
        copies=query.copies,
        gamma=query.gamma,
    )


def infer_request(infer: InferRequest, service: ServiceView) -> QueryRequest:
    """Return the query that an Open Inference Protocol request asks for."""
    if len(infer.inputs) != 1:
        raise InputError(f"service {service.name!r} takes one input tensor, the request has {len(infer.inputs)}")
    options = infer.parameters or Options()
    return QueryRequest(
        service=service.name,
        inputs=to_tensor(_tensor(infer.inputs[0]), service.input, f"input {infer.inputs[0].name!r}"),
        parties=options.parties,
        vote=options.vote.value,
        reveal=options.reveal.value,
        deadline_s=options.deadline_s,
        engine=options.engine,
        weights=options.weights,
        copies=options.copies,
        gamma=options.gamma,
    )


def find(name: str, services: tuple[ServiceView, ...]) -> ServiceView:
    """Return the service of that name; raise `UnknownService`, naming those there are."""
    found = next((service for service in services if service.name == name), None)
    if found is None:
        raise unknown_service(name, services)
    return found


def unknown_service(name: str, services: tuple[ServiceView, ...]) -> UnknownService:
    known = ", ".join(sorted(service.name for service in services)) or "none"
    return UnknownService(f"no service {name!r} is offered in the federation", hint=f"services known: {known}")


def _tensor(tensor: InferInput) -> npt.NDArray[Any]:
    where = f"input {tensor.name!r}"
    if tensor.datatype not in DATATYPES:
        raise InputError(f"{where}: datatype {tensor.datatype!r} is not one of {', '.join(DATATYPES)}")
    dtype = np.dtype(DATATYPES[tensor.datatype])
    count = _count(tensor.shape, f"{where}: shape")
    try:
        array = np.asarray(tensor.data)
    except ValueError:
        raise InputError(f"{where}: data is not rectangular") from None
    allowed = {"b": "b", "u": "iu", "i": "iu", "f": "iuf"}[dtype.kind]
    if array.size and array.dtype.kind not in allowed:
        raise InputError(f"{where}: data is not all {tensor.datatype} numbers")
    if array.ndim == 1 and array.size != count:
        raise InputError(f"{where}: shape {_text(tensor.shape)} takes {count} values, data has {array.size}")
    if array.ndim > 1 and array.shape != tensor.shape:
        raise InputError(f"{where}: shape is {_text(tensor.shape)}, but data is nested as {_text(array.shape)}")
    if dtype.kind in "iu":
        bounds = np.iinfo(dtype)
        if int(array.min()) < bounds.min or int(array.max()) > bounds.max:
            raise InputError(f"{where}: a value does not fit {tensor.datatype}")
    if dtype.kind == "b":
        dtype = np.dtype(np.float64)  # not bytes: those of an image service are images
    with np.errstate(over="ignore"):  # an infinity is found, and named, by `to_tensor`
        return array.astype(dtype).reshape(tensor.shape)


def _count(shape: tuple[int, ...], where: str) -> int:
    if not 0 < len(shape) <= MAX_DIMENSIONS or any(side <= 0 for side in shape):
        raise InputError(f"{where} {_text(shape)} is not 1 to {MAX_DIMENSIONS} positive numbers")
    return math.prod(shape)


def _text(shape: tuple[int, ...]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"
