"""From a V2 request body to named arrays that fit the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from modelhost.api.codec.binary_tensors import decode_binary, decode_single_text
from modelhost.api.codec.cost import Foreseen, foresee
from modelhost.api.codec.fields import (
    flag_at,
    named_entries,
    object_at,
    parse_document,
    refuse_parameters,
    request_id,
    timeout_s,
)
from modelhost.api.codec.json_tensors import decode_json, say
from modelhost.api.codec.messages import InferRequest, OutputRequest
from modelhost.api.codec.number_list import Numbers
from modelhost.errors import InvalidRequest, InvalidTensor, RequestTooLarge
from modelhost.tensors import DTYPES, Array, TensorSpec, check_names, check_outputs

_HEADER: Final = "Inference-Header-Content-Length"
_MAX_DIMS: Final = 32
_MAX_ARRAY_BYTES: Final = 2**63 - 1  # what numpy can address, zero-sized dimensions left out


def parse_header_length(value: str | None, body_length: int) -> int | None:
    """Returns the length of the JSON part, in bytes, that the header `value` states; None for None.

    Raises InvalidRequest unless it is a decimal number from 0 to `body_length`.
    """
    if value is None:
        return None
    digits = value.strip()
    # Eighteen digits are more than any body has, and int() refuses thousands.
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 18):
        raise InvalidRequest(f"{_HEADER} must be a number of bytes, got '{value[:40]}'")
    length = int(digits)
    if length > body_length:
        raise InvalidRequest(f"{_HEADER} is {length}, but the body has only {body_length} bytes")
    return length


def decode_request(
    body: bytes | memoryview,
    *,
    header_length: int | None,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
    max_decoded_bytes: int | None,
    foreseen: Foreseen | None = None,
) -> InferRequest:
    """Returns the request in `body` (decompressed) after checking it against the model.

    `header_length` is what `parse_header_length` gave: None for a body that is all JSON, 0 for one
    that is a single raw tensor. Arrays may be views on `body`, which must not change afterwards.
    `foreseen` is what `foresee` gave for just this, whose cost the caller has claimed. Without it that is asked for
    here: raises RequestTooLarge where its cost is over `max_decoded_bytes` (None: it may be anything). Raises
    InvalidTensor where a tensor does not fit, and InvalidRequest for everything else that is wrong.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise InvalidRequest(f"{_HEADER} is {header_length}, but the body has {len(body)} bytes")
    if foreseen is None:
        foreseen = foresee(body, header_length=header_length, inputs=inputs)
        _check_cost(foreseen.cost_bytes, max_decoded_bytes, all_json=header_length in (None, len(body)))
    if header_length == 0:
        return _decode_raw(body, inputs, outputs)
    text_length, large = len(body) if header_length is None else header_length, foreseen.large
    if large is None:
        text = body if text_length == len(body) else body[:text_length]
        return _decode_document(parse_document(text), body, text_length, inputs, outputs)
    try:
        return _decode_document(large.document, body, text_length, inputs, outputs)
    except (InvalidRequest, InvalidTensor) as error:
        refusal = error.with_traceback(None)  # without what was read so far
    large.check()  # what is not JSON is refused for that first, as in small requests
    raise refusal


def _decode_document(
    document: Mapping[str, object],
    body: bytes | memoryview,
    text_length: int,
    inputs: Mapping[str, TensorSpec],
    outputs: Mapping[str, TensorSpec],
) -> InferRequest:
    parameters = object_at(document, "parameters", "the request")
    return InferRequest(
        id=request_id(document),
        feeds=_feeds(document, body, text_length, inputs),
        outputs=_outputs(document, outputs, flag_at(parameters, "binary_data_output", "the request")),
        timeout_s=timeout_s(parameters),
    )


def _check_cost(cost_bytes: int, max_decoded_bytes: int | None, *, all_json: bool) -> None:
    if max_decoded_bytes is not None and cost_bytes > max_decoded_bytes:
        raise RequestTooLarge(
            "decoding the request takes up to",
            size_bytes=cost_bytes,
            limit_bytes=max_decoded_bytes,
            advice="send it as binary tensors" if all_json else "",
        )


# --- outputs -----------------------------------------------------------------------------------


def _outputs(
    document: Mapping[str, object], specs: Mapping[str, TensorSpec], binary: bool
) -> tuple[OutputRequest, ...]:
    """Returns the outputs asked for, or all of the model's; each one's own `binary_data` wins."""
    value = document.get("outputs")
    if value is None or value == []:
        return tuple(OutputRequest(name, binary) for name in specs)
    named = named_entries(value, "output")
    check_outputs(specs, list(named))
    return tuple(_output(name, entry, binary) for name, entry in named.items())


def _output(name: str, entry: Mapping[str, object], binary: bool) -> OutputRequest:
    where = f"output '{name}'"
    parameters = object_at(entry, "parameters", where)
    refuse_parameters(parameters, ("shared_memory_region", "classification"), where)
    return OutputRequest(name, flag_at(parameters, "binary_data", where, binary))


# --- inputs ------------------------------------------------------------------------------------


def _feeds(
    document: Mapping[str, object],
    body: bytes | memoryview,
    text_length: int,
    specs: Mapping[str, TensorSpec],
) -> dict[str, Array]:
    if "inputs" not in document:
        raise InvalidRequest("the request has no 'inputs'")
    named = named_entries(document["inputs"], "input")
    check_names(specs, named)
    sizes = {name: _binary_size(name, entry) for name, entry in named.items()}
    _check_total(sizes, len(body) - text_length)
    feeds: dict[str, Array] = {}
    start = text_length
    for name, entry in named.items():
        datatype, shape = _declared(specs[name], entry)
        size = sizes[name]
        if size is None:
            feeds[name] = _decode_data(name, datatype, shape, entry["data"])
        else:
            feeds[name] = decode_binary(name, datatype, shape, body, start=start, size=size)
            start += size
    return feeds


def _decode_data(name: str, datatype: str, shape: Sequence[int], data: object) -> Array:
    if isinstance(data, Numbers):
        return data.decode(name, datatype, shape)
    return decode_json(name, datatype, shape, data)


def _binary_size(name: str, entry: Mapping[str, object]) -> int | None:
    """Returns how many bytes of the binary part are this input's; None where it is JSON."""
    where = f"input '{name}'"
    parameters = object_at(entry, "parameters", where)
    refuse_parameters(parameters, ("shared_memory_region",), where)
    size, data = parameters.get("binary_data_size"), entry.get("data")
    if size is None:
        if data is None:
            raise InvalidTensor(name, expected="'data' or 'binary_data_size'", got="neither")
        return None
    if type(size) is not int or size < 0:
        raise InvalidTensor(name, expected="a number of bytes as binary_data_size", got=say(size))
    if data is not None:
        raise InvalidTensor(name, expected="either 'data' or 'binary_data_size'", got="both of them")
    return size


def _check_total(sizes: Mapping[str, int | None], available: int) -> None:
    """Raises InvalidRequest unless the raw tensors use up what follows the JSON, exactly."""
    declared = sum(size for size in sizes.values() if size is not None)
    if declared != available:
        raise InvalidRequest(
            f"the inputs declare {declared} bytes of binary data, but {available} bytes follow the "
            f"JSON part (its length is stated by the header {_HEADER})"
        )


def _declared(spec: TensorSpec, entry: Mapping[str, object]) -> tuple[str, list[int]]:
    """Returns datatype and shape as the client declares them, once they fit `spec`."""
    datatype, shape = entry.get("datatype"), entry.get("shape")
    if not isinstance(datatype, str):
        raise InvalidTensor(spec.name, expected=f"datatype {spec.datatype}", got=say(datatype))
    if not isinstance(shape, list):
        raise _no_shape(spec, shape)
    check_declared(spec, datatype, shape)
    return datatype, shape


def check_declared(spec: TensorSpec, datatype: str, shape: list[int]) -> None:
    """Raises InvalidTensor unless a tensor of this datatype and shape can be made, and fits `spec`."""
    if len(shape) > _MAX_DIMS:
        raise _no_shape(spec, shape)
    for size in shape:
        if type(size) is not int or size < 0:
            raise InvalidTensor(
                spec.name,
                expected=f"sizes of 0 or more as 'shape' for {spec.describe()}",
                got=say(size),
            )
    _check_known(spec)
    # A long datatype would be repeated whole in the message.
    spec.check(datatype if len(datatype) <= 16 else say(datatype), shape)
    if 0 in shape:
        _check_addressable(spec, shape)


def _no_shape(spec: TensorSpec, shape: object) -> InvalidTensor:
    return InvalidTensor(
        spec.name,
        expected=f"as 'shape' a list of at most {_MAX_DIMS} sizes for {spec.describe()}",
        got=say(shape),
    )


def _check_known(spec: TensorSpec) -> None:
    if spec.datatype not in DTYPES:
        raise InvalidTensor(spec.name, expected="a datatype of this server", got=spec.datatype)


def _check_addressable(spec: TensorSpec, shape: Sequence[int]) -> None:
    """Refuses empty arrays that numpy cannot make; others are held against the data's length."""
    span = math.prod(size or 1 for size in shape) * DTYPES[spec.datatype].itemsize
    if span > _MAX_ARRAY_BYTES:
        raise InvalidTensor(spec.name, expected=f"at most {_MAX_ARRAY_BYTES} bytes", got=f"shape {list(shape)}")


# --- one raw tensor as the whole body ------------------------------------------------------------


def _decode_raw(
    body: bytes | memoryview, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
) -> InferRequest:
    """Decodes the only input; the size of its variable dimension follows from the body's length."""
    if len(inputs) != 1:
        raise InvalidRequest(
            f"{_HEADER} 0 is for models with one input; this one has {len(inputs)}: "
            + ", ".join(f"'{spec.name}' {spec.describe()}" for spec in inputs.values())
        )
    (spec,) = inputs.values()
    _check_known(spec)
    shape = _raw_shape(spec, len(body))
    if spec.datatype == "BYTES":
        # The whole body is the text of the one element, without a length before it.
        value = decode_single_text(spec.name, bytes(body)).reshape(shape)
    else:
        value = decode_binary(spec.name, spec.datatype, shape, body, start=0, size=len(body))
    return InferRequest(
        id="",
        feeds={spec.name: value},
        outputs=tuple(OutputRequest(name, binary=True) for name in outputs),
        timeout_s=None,
    )


def _raw_shape(spec: TensorSpec, size_bytes: int) -> list[int]:
    """Returns the spec's shape with its open size filled in; raises InvalidTensor if none fits."""
    if spec.shape is None or sum(size < 0 for size in spec.shape) > 1:
        raise InvalidTensor(
            spec.name,
            expected=f"JSON with a shape for {spec.describe()}, as more than one size is open",
            got=f"{_HEADER} 0",
        )
    is_open = any(size < 0 for size in spec.shape)
    fixed = math.prod(size for size in spec.shape if size >= 0)
    if spec.datatype == "BYTES":
        count, unit, got = 1, fixed, "one element, the whole body"
    else:
        count, unit, got = size_bytes, fixed * DTYPES[spec.datatype].itemsize, f"{size_bytes} bytes"
    variable = count // unit if is_open and unit else 1
    if variable * unit != count:
        what = "elements" if spec.datatype == "BYTES" else "bytes"
        multiple = "a multiple of " if is_open else ""
        raise InvalidTensor(spec.name, expected=f"{multiple}{unit} {what} for {spec.describe()}", got=got)
    return [variable if size < 0 else size for size in spec.shape]
