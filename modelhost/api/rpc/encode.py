"""From output arrays to a ModelInferResponse, or to one that goes into a stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from modelhost.api.codec import OutputRequest
from modelhost.api.codec.binary_tensors import encode_texts
from modelhost.api.codec.response import little_endian, texts_of
from modelhost.api.codec.structured import json_texts, structured_cost_bytes
from modelhost.api.rpc.decode import CONTENTS, SAME_BYTES
from modelhost.api.rpc.messages import InferTensorContents, ModelInferResponse
from modelhost.api.rpc.wire import length_prefix
from modelhost.errors import UnrepresentableOutput
from modelhost.pool import ModelKey
from modelhost.tensors import Array, TensorSpec, datatype_of

Outputs = Sequence[tuple[OutputRequest, TensorSpec, Array]]

#: ModelInferResponse.raw_output_contents, and ModelStreamInferResponse.infer_response.
_RAW: Final = 6
_INFER_RESPONSE: Final = 2

_FIELD_NUMBERS: Final = {field.name: field.number for field in InferTensorContents.DESCRIPTOR.fields}

#: Clients of streams wait for this parameter; every answer here is its request's last.
_FINAL: Final = "triton_final_response"

#: Bytes for each element of typed contents: a Python number in a list, the message's array, what is written.
_NUMBER_COST: Final = 72
#: The same for those that lie as in memory: the message's copy, its parts written, and all of it.
_SAME_COST: Final = 4


class MessageEncoding:
    """How outputs become the bytes of an answer, in the order asked for.

    Raw, by position, where the request was; otherwise typed contents, unless an output has no typed form.
    """

    def __init__(self, request_id: str, *, is_stream: bool) -> None:
        self._request_id, self._is_stream = request_id, is_stream

    def cost_bytes(self, outputs: Outputs) -> int:
        """Returns an upper bound for the bytes that `encode` takes, the arrays not included."""
        is_raw = _is_raw(outputs)
        cost = 4096
        for _, spec, array in outputs:
            datatype = datatype_of(array.dtype)
            if spec.is_structured:
                cost += 2 * structured_cost_bytes(array)
            elif datatype == "BYTES":
                characters = sum(len(text) for text in array.ravel().tolist() if isinstance(text, str))
                cost += 3 * (4 * characters + 48 * array.size)
            elif is_raw:
                cost += 2 * array.nbytes  # the message, and a contiguous copy where they are not in order
            elif datatype in SAME_BYTES:
                cost += _SAME_COST * array.nbytes
            else:
                cost += _NUMBER_COST * array.size
        return cost

    def size_bytes(self, answer: bytes) -> int:
        """Returns what the answer holds."""
        return len(answer)

    def encode(self, key: ModelKey, outputs: Outputs) -> bytes:
        """Returns the message. Raises UnrepresentableOutput where an array has no V2 datatype."""
        answer = ModelInferResponse(model_name=key.name, model_version=key.version, id=self._request_id)
        if self._is_stream:
            answer.parameters[_FINAL].bool_param = True
        is_raw = _is_raw(outputs)
        chunks: list[bytes | memoryview] = []
        for asked, spec, array in outputs:
            datatype = datatype_of(array.dtype)
            if datatype is None:
                raise UnrepresentableOutput(
                    f"output '{asked.name}' ({spec.describe()}): V2 has no datatype for numpy {array.dtype}"
                )
            tensor = answer.outputs.add(name=asked.name, datatype=datatype, shape=array.shape)
            if is_raw:
                raw = _raw(asked.name, datatype, spec, array)
                chunks += (length_prefix(_RAW, len(raw)), raw)
            else:
                _fill(tensor.contents, asked.name, datatype, spec, array.ravel())
        chunks.insert(0, answer.SerializeToString())
        if self._is_stream:
            chunks.insert(0, length_prefix(_INFER_RESPONSE, sum(map(len, chunks))))
        return b"".join(chunks)


def _is_raw(outputs: Outputs) -> bool:
    return any(asked.binary or datatype_of(array.dtype) in ("FP16", "BF16") for asked, _, array in outputs)


def _texts(name: str, spec: TensorSpec, flat: Array) -> list[str]:
    return json_texts(name, flat) if spec.is_structured else texts_of(name, flat)


def _raw(name: str, datatype: str, spec: TensorSpec, array: Array) -> bytes | memoryview:
    flat = array.ravel()  # a view where the array is contiguous already
    return encode_texts(name, _texts(name, spec, flat)) if datatype == "BYTES" else little_endian(flat, datatype)


def _fill(contents: Any, name: str, datatype: str, spec: TensorSpec, flat: Array) -> None:
    """Adds the elements to their field."""
    field = CONTENTS[datatype]
    if datatype == "BYTES":
        texts = _texts(name, spec, flat)
        encode_texts(name, texts)  # says which element has no UTF-8 form
        contents.bytes_contents.extend([text.encode() for text in texts])
    elif datatype in SAME_BYTES:
        raw = little_endian(flat, datatype)
        contents.MergeFromString(length_prefix(_FIELD_NUMBERS[field], len(raw)) + raw)
    else:
        getattr(contents, field).extend(flat.tolist())
