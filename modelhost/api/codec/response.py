"""From output arrays to a V2 response body."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import orjson

from modelhost.api.codec.binary_tensors import encode_texts
from modelhost.api.codec.cost import longest_text
from modelhost.api.codec.json_tensors import check_json
from modelhost.api.codec.messages import EncodedResponse, OutputRequest
from modelhost.api.codec.structured import json_texts, structured_cost_bytes
from modelhost.errors import UnrepresentableOutput
from modelhost.tensors import DTYPES, Array, TensorSpec, datatype_of

_OPTIONS: Final = orjson.OPT_SERIALIZE_NUMPY
#: What any answer takes, and what each output does beyond its data: names, shape, the objects that are written.
_FIXED_COST: Final = 8192
_OUTPUT_COST: Final = 1024


def encode_response(
    *,
    model_name: str,
    model_version: str,
    request_id: str,
    outputs: Sequence[tuple[OutputRequest, TensorSpec, Array]],
) -> EncodedResponse:
    """Returns the response with `outputs` in the order given, each as JSON or as raw bytes.

    Datatype and shape are those of the arrays; data is row major. Elements of structured outputs are
    BYTES, each its JSON text. `id` is left out where `request_id` is "". Raises UnrepresentableOutput
    where an array has no V2 datatype or JSON cannot carry it (FP16, BF16, NaN, Infinity).
    """
    document: dict[str, object] = {"model_name": model_name, "model_version": model_version}
    if request_id:
        document["id"] = request_id
    chunks: list[bytes | memoryview] = [b""]  # the JSON goes first, once it is known
    document["outputs"] = [_encode(*output, chunks) for output in outputs]
    try:
        text = orjson.dumps(document, option=_OPTIONS)
    except orjson.JSONEncodeError as error:
        raise _not_unicode(outputs, str(error)) from None
    if len(chunks) == 1 and not any(asked.binary for asked, _, _ in outputs):
        return EncodedResponse(text, None)
    chunks[0] = text
    return EncodedResponse(b"".join(chunks), len(text))


def encode_cost_bytes(outputs: Sequence[tuple[OutputRequest, TensorSpec, Array]]) -> int:
    """Returns an upper bound for the bytes that `encode_response` of `outputs` makes, the arrays not included.

    JSON numbers count with the longest text of their datatype, and twice, since the writer's buffer
    grows by doubling. Text counts with six bytes a character (`\\u001f`) and its list entry. What structured
    outputs hold is included: nobody else has foreseen it.
    """
    cost = _FIXED_COST + _OUTPUT_COST * len(outputs)
    for asked, spec, array in outputs:
        datatype = datatype_of(array.dtype)
        if spec.is_structured:
            cost += structured_cost_bytes(array)
        elif datatype == "BYTES":
            characters = sum(len(text) for text in array.ravel().tolist() if isinstance(text, str))
            cost += 2 * (6 * characters + 8 * array.size)
        elif asked.binary or datatype is None:
            # The raw bytes, and a contiguous copy where they are not in order.
            cost += array.nbytes if array.flags.c_contiguous else 2 * array.nbytes
        else:
            cost += 2 * longest_text(datatype) * array.size
    return cost


def _encode(
    asked: OutputRequest, spec: TensorSpec, array: Array, chunks: list[bytes | memoryview]
) -> dict[str, object]:
    """Returns the output's JSON object; a binary one also appends its bytes to `chunks`."""
    datatype = datatype_of(array.dtype)
    if datatype is None:
        raise UnrepresentableOutput(
            f"output '{asked.name}' ({spec.describe()}): V2 has no datatype for numpy {array.dtype}"
        )
    tensor: dict[str, object] = {
        "name": asked.name,
        "datatype": datatype,
        "shape": list(array.shape),
    }
    flat = array.ravel()  # a view where the array is contiguous already
    if datatype == "BYTES":
        texts = json_texts(asked.name, flat) if spec.is_structured else texts_of(asked.name, flat)
        raw: bytes | memoryview = encode_texts(asked.name, texts) if asked.binary else b""
        data: object = texts
    elif asked.binary:
        raw, data = little_endian(flat, datatype), None
    else:
        check_json(asked.name, datatype, flat)
        raw, data = b"", flat
    if asked.binary:
        # Clients take a parameters object without binary_data_size for an error.
        tensor["parameters"] = {"binary_data_size": len(raw)}
        chunks.append(raw)
    else:
        tensor["data"] = data
    return tensor


def little_endian(flat: Array, datatype: str) -> memoryview:
    """Returns the bytes of `flat`, without a copy on little-endian machines."""
    wire = flat.astype(DTYPES[datatype].newbyteorder("<"), copy=False)
    return wire.view(np.uint8).data


def texts_of(name: str, flat: Array) -> list[str]:
    """Returns the elements of a text output; raises UnrepresentableOutput where one is something else."""
    texts: list[str] = flat.tolist()
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise UnrepresentableOutput(f"output '{name}': element {index} is {type(text).__name__}, expected text")
    return texts


def _not_unicode(outputs: Sequence[tuple[OutputRequest, TensorSpec, Array]], reason: str) -> UnrepresentableOutput:
    """Finds the text output that JSON refused: one with a lone surrogate."""
    for asked, spec, array in outputs:
        if datatype_of(array.dtype) == "BYTES" and not spec.is_structured:
            try:
                encode_texts(asked.name, texts_of(asked.name, array.ravel()))
            except UnrepresentableOutput as error:
                return error
    return UnrepresentableOutput(f"the response has no JSON form: {reason}")
