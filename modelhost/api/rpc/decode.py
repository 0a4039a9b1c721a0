"""From a ModelInferRequest to named tensors that fit the model; what is accepted is what HTTP accepts."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

from modelhost.api.codec import InferRequest, OutputRequest
from modelhost.api.codec.binary_tensors import decode_binary
from modelhost.api.codec.cost import raw_cost_bytes
from modelhost.api.codec.fields import add_named, refuse_parameters, timeout_s
from modelhost.api.codec.request import check_declared
from modelhost.api.rpc.messages import ModelInferRequest, parse, plain_values
from modelhost.api.rpc.wire import Parts, parse_cost_bytes
from modelhost.errors import InvalidRequest, InvalidTensor
from modelhost.tensors import DTYPES, Array, TensorSpec, check_names, check_outputs

#: The field of InferTensorContents that a datatype's elements are in.
CONTENTS: Final[Mapping[str, str]] = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}

#: Those whose elements lie in a message as they do in memory.
SAME_BYTES: Final = frozenset({"BOOL", "FP32", "FP64"})


def infer_cost_bytes(message: bytes, parts: Parts, inputs: Mapping[str, TensorSpec]) -> int:
    """Returns an upper bound for the bytes that `decode_infer` holds at its peak, the message not included."""
    return parse_cost_bytes(message, parts) + raw_cost_bytes(message, parts.raw, inputs)


def decode_infer(
    message: bytes, parts: Parts, *, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> InferRequest:
    """Returns the request in `message` after checking it against the model.

    Arrays may be views on `message`. All outputs are asked for as raw bytes where the inputs came so.
    Raises InvalidTensor where a tensor does not fit, and InvalidRequest for everything else that is wrong.
    """
    request = parse(ModelInferRequest, parts.head_of(message))
    return InferRequest(
        id=request.id,
        feeds=_feeds(message, parts.raw, request.inputs, inputs),
        outputs=_outputs(request.outputs, outputs, binary=bool(parts.raw)),
        timeout_s=timeout_s(plain_values(request.parameters)),
    )


def _outputs(asked: Iterable[Any], specs: Mapping[str, TensorSpec], *, binary: bool) -> tuple[OutputRequest, ...]:
    named = _named(asked, "output")
    check_outputs(specs, list(named))
    for name, entry in named.items():
        refuse_parameters(entry.parameters, ("shared_memory_region", "classification"), f"output '{name}'")
    return tuple(OutputRequest(name, binary) for name in named or specs)


def _feeds(
    message: bytes, raw: list[tuple[int, int]], entries: Iterable[Any], specs: Mapping[str, TensorSpec]
) -> dict[str, Array]:
    named = _named(entries, "input")
    check_names(specs, named)
    if raw and len(raw) != len(named):
        raise InvalidRequest(f"raw_input_contents: expected one for each of the {len(named)} inputs, got {len(raw)}")
    feeds: dict[str, Array] = {}
    for index, (name, entry) in enumerate(named.items()):
        refuse_parameters(entry.parameters, ("shared_memory_region",), f"input '{name}'")
        datatype, shape = entry.datatype, list(entry.shape)
        check_declared(specs[name], datatype, shape)
        has_contents = entry.HasField("contents") and entry.contents.ListFields()
        if not raw:
            feeds[name] = _decode_contents(name, datatype, shape, entry.contents)
        elif has_contents:
            raise InvalidTensor(name, expected="either contents or raw_input_contents", got="both of them")
        else:
            start, size = raw[index]
            feeds[name] = decode_binary(name, datatype, shape, message, start=start, size=size)
    return feeds


def _named(entries: Iterable[Any], kind: str) -> dict[str, Any]:
    """Returns the entries by their unique names, in order."""
    named: dict[str, Any] = {}
    for index, entry in enumerate(entries):
        add_named(named, entry.name, entry, kind=kind, index=index)
    return named


# --- typed contents --------------------------------------------------------------------------------


def _decode_contents(name: str, datatype: str, shape: list[int], contents: Any) -> Array:
    """Returns the array of `shape` in the one field of `contents` that is right for the datatype."""
    field = CONTENTS.get(datatype)
    if field is None:
        raise InvalidTensor(name, expected=f"raw_input_contents, as contents have no {datatype}", got="contents")
    contents.DiscardUnknownFields()
    given = {found.name: values for found, values in contents.ListFields()}
    if strange := next((found for found in given if found != field), None):
        raise InvalidTensor(name, expected=f"{field} for {datatype}", got=strange)
    values = given.get(field, ())
    count = math.prod(shape)
    if len(values) != count:
        raise InvalidTensor(name, expected=f"{count} elements for shape {shape}", got=f"{len(values)} elements")
    if not count:
        return np.empty(shape, DTYPES[datatype])
    if datatype == "BYTES":
        return _texts(name, values).reshape(shape)
    if datatype in SAME_BYTES:
        return _same_bytes(DTYPES[datatype], count, contents).reshape(shape)
    return _integers(name, datatype, values).reshape(shape)


def _same_bytes(dtype: np.dtype[np.generic], count: int, contents: Any) -> Array:
    """Takes the elements out of their field written again, where they are the last bytes: a copy in C.

    Reading them one by one would make an object of each.
    """
    written = contents.SerializeToString()
    flat: Array = np.frombuffer(written, dtype.newbyteorder("<"), offset=len(written) - count * dtype.itemsize)
    return flat if flat.flags.aligned else flat.copy()


def _integers(name: str, datatype: str, values: Any) -> Array:
    """Narrows to the datatype; its field may hold more."""
    dtype = DTYPES[datatype]
    wide = np.fromiter(values, np.uint64 if dtype.kind == "u" else np.int64, len(values))
    if dtype.itemsize < 4:
        info = np.iinfo(dtype.name)
        outside = (wide < info.min) | (wide > info.max)
        if outside.any():
            index = int(outside.argmax())
            raise InvalidTensor(
                name,
                expected=f"values from {info.min} to {info.max} for {datatype}",
                got=f"{wide[index]} as element {index}",
            )
    return wide.astype(dtype, copy=False)


def _texts(name: str, values: Iterable[bytes]) -> Array:
    texts: list[str] = []
    for index, value in enumerate(values):
        try:
            texts.append(value.decode())
        except UnicodeDecodeError as error:
            reason = f"element {index} with {error.reason} at its byte {error.start}"
            raise InvalidTensor(
                name, expected="UTF-8 text, which is what ONNX string tensors hold", got=reason
            ) from None
    return np.array(texts, dtype=np.object_)
