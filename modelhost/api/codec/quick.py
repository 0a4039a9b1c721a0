"""The common request and its answer, for one loaded model: no more steps than they need.

What is anything but common gives None, and takes the general way, which is the only one that says what is
wrong: nothing is accepted here that is refused there, and nothing is answered in another form.
"""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import orjson

from modelhost.api.codec.binary_tensors import decode_binary
from modelhost.api.codec.json_tensors import ELEMENT_TYPES
from modelhost.api.codec.messages import Body, EncodedResponse, InferRequest, OutputRequest
from modelhost.errors import InvalidTensor
from modelhost.tensors import DTYPES, Array, TensorSpec, datatype_of

#: Other members of a request are ignored by the general way as well; these it looks at.
_LOOKED_AT: Final = ("parameters", "outputs")

#: Python's struct writes these with a check of the range, and faster than numpy does from a list.
_FORMATS: Final = {"FP32": "f", "FP64": "d", "INT32": "i", "INT64": "q", "UINT8": "B", "INT8": "b"}

#: Answers whose beginning is remembered for each model, by their shapes.
_SHAPES_KEPT: Final = 64

#: Descriptions of raw tensors that are remembered for each model, and how long one may be: clients that name no id send
#: the same one with each request.
_HEADS_KEPT: Final = 16
_HEAD_BYTES: Final = 1 << 10

_NULL: Final = b"null"
_IS_LITTLE: Final = sys.byteorder == "little"

#: Numbers of which all bytes are some, and that lie in a body as they do in memory.
_AS_THEY_LIE: Final = {
    name: dtype for name, dtype in DTYPES.items() if _IS_LITTLE and name not in ("BOOL", "BYTES", "BF16")
}

Key = tuple[tuple[OutputRequest, ...], tuple[tuple[int, ...], ...]]


class _Raw(NamedTuple):
    """A tensor as it lies in a body."""

    spec: TensorSpec
    shape: tuple[int, ...]
    size_bytes: int
    dtype: np.dtype[np.generic] | None
    """Of numbers that need no look; None for others, and where there are none."""

    @classmethod
    def of(cls, spec: TensorSpec, shape: list[int], size_bytes: int) -> _Raw:
        """Returns one of so many bytes."""
        return cls(spec, tuple(shape), size_bytes, _AS_THEY_LIE.get(spec.datatype) if size_bytes else None)


class _Head(NamedTuple):
    """What the JSON before raw tensors says, where it names no id."""

    inputs: tuple[_Raw, ...]
    """In the order of the tensors."""
    size_bytes: int
    """Of all of them."""
    outputs: tuple[OutputRequest, ...]


class QuickCodec:
    """Decodes and encodes for one model. Any thread."""

    __slots__ = ("_as_binary", "_as_json", "_heads", "_inputs", "_outputs", "_prefix", "_templates")

    def __init__(
        self, name: str, version: str, inputs: Mapping[str, TensorSpec], outputs: Mapping[str, TensorSpec]
    ) -> None:
        self._inputs, self._outputs = inputs, outputs
        self._as_json = tuple(OutputRequest(output, binary=False) for output in outputs)
        self._as_binary = tuple(OutputRequest(output, binary=True) for output in outputs)
        # Without the closing brace, so that the id and the outputs follow.
        self._prefix = orjson.dumps({"model_name": name, "model_version": version})[:-1]
        self._templates: dict[Key, list[bytes]] = {}
        self._heads: dict[bytes, _Head] = {}

    # --- requests ------------------------------------------------------------------------------------

    def decode(self, body: Body, header_length: int | None) -> InferRequest | None:
        """Returns what `decode_request` would, or None where that has to be asked."""
        if header_length == 0:
            return None
        head = b""  # where it may be remembered
        if header_length is not None and header_length <= _HEAD_BYTES:
            head = bytes(body[:header_length])
            known = self._heads.get(head)
            if known is not None:
                return _decode_known(known, body, header_length)
        try:
            document = orjson.loads(body if header_length is None else head or body[:header_length])
            entries = document["inputs"]
            if len(entries) != len(self._inputs):
                return None
            feeds: dict[str, Array] = {}
            raw: list[_Raw] = []
            start = len(body) if header_length is None else header_length
            for entry in entries:
                spec = self._inputs[entry["name"]]
                shape = entry["shape"]
                if entry["datatype"] != spec.datatype or not _fits(spec, shape):
                    return None
                if "parameters" not in entry:
                    value = _from_list(spec.datatype, shape, entry["data"])
                else:
                    size = _raw_size(entry)
                    if size is None:
                        return None
                    value = decode_binary(spec.name, spec.datatype, shape, body, start=start, size=size)
                    start += size
                    raw.append(_Raw.of(spec, shape, size))
                if value is None:
                    return None
                feeds[spec.name] = value
            outputs = self._as_json
            for member in _LOOKED_AT:
                if member in document:
                    found = self._outputs_of(document)
                    if found is None:
                        return None
                    outputs = found
                    break
            request_id = document.get("id", "")
        except (
            AttributeError,
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            struct.error,
            OverflowError,
            InvalidTensor,
        ):
            return None  # wrong in some way, or only uncommon
        if start != len(body) or len(feeds) != len(self._inputs) or type(request_id) is not str:
            return None
        if head and not request_id and len(raw) == len(feeds):
            self._remember(head, _Head(tuple(raw), len(body) - len(head), outputs))
        return InferRequest(request_id, feeds, outputs, None)

    def _remember(self, text: bytes, head: _Head) -> None:
        if len(self._heads) >= _HEADS_KEPT:
            self._heads.clear()
        self._heads[text] = head

    def _outputs_of(self, document: dict[str, object]) -> tuple[OutputRequest, ...] | None:
        """Returns the outputs asked for, where nothing is asked besides which, and whether as raw bytes."""
        parameters, entries = document.get("parameters"), document.get("outputs")
        binary = False
        if parameters is not None:
            if type(parameters) is not dict or parameters.keys() != {"binary_data_output"}:
                return None
            binary = parameters["binary_data_output"]
            if type(binary) is not bool:
                return None
        if entries is None:
            return self._as_binary if binary else self._as_json
        if type(entries) is not list or not entries:
            return None
        asked = []
        for entry in entries:
            own = entry.get("parameters")
            wanted = binary
            if own is not None:
                if own.keys() != {"binary_data"} or type(own["binary_data"]) is not bool:
                    return None
                wanted = own["binary_data"]
            if entry["name"] not in self._outputs:
                return None
            asked.append(OutputRequest(entry["name"], wanted))
        return tuple(asked) if len({out.name for out in asked}) == len(asked) else None

    # --- answers -------------------------------------------------------------------------------------

    def encode(self, request: InferRequest, arrays: Sequence[Array]) -> EncodedResponse | None:
        """Returns what `encode_response` would, or None where that has to be asked."""
        key = (request.outputs, tuple([array.shape for array in arrays]))
        template = self._templates.get(key)
        if template is None:
            template = self._template(request.outputs, arrays)
            if template is None:
                return None
            if len(self._templates) >= _SHAPES_KEPT:
                self._templates.clear()
            self._templates[key] = template
        parts = [self._prefix]
        if request.id:
            parts += (b',"id":', orjson.dumps(request.id))
        raws: list[memoryview] = []
        for asked, text, array in zip(request.outputs, template, arrays, strict=True):
            parts.append(text)
            if asked.binary:
                raws.append(array.ravel().view(np.uint8).data)
            else:
                data = orjson.dumps(array.ravel(), option=orjson.OPT_SERIALIZE_NUMPY)
                if _NULL in data:  # NaN or infinity, which JSON does not have
                    return None
                parts += (data, b"}")
        parts.append(b"]}")
        text = b"".join(parts)
        if not raws:
            return EncodedResponse(text, None)
        return EncodedResponse(b"".join([text, *raws]), len(text))

    def _template(self, outputs: tuple[OutputRequest, ...], arrays: Sequence[Array]) -> list[bytes] | None:
        """Returns what stands before each output's data; None where one is not of plain numbers."""
        template: list[bytes] = []
        if not outputs:
            return None
        for index, (asked, array) in enumerate(zip(outputs, arrays, strict=True)):
            datatype, spec = datatype_of(array.dtype), self._outputs[asked.name]
            if datatype not in ELEMENT_TYPES and not asked.binary:
                return None
            if datatype is None or datatype in ("BYTES", "BOOL") or spec.is_structured or datatype != spec.datatype:
                return None
            if not _IS_LITTLE:
                return None
            tensor: dict[str, object] = {"name": asked.name, "datatype": datatype, "shape": list(array.shape)}
            if asked.binary:
                tensor["parameters"] = {"binary_data_size": array.nbytes}
            text = orjson.dumps(tensor)
            before = b',"outputs":[' if index == 0 else b","
            template.append(before + (text if asked.binary else text[:-1] + b',"data":'))
        return template


def _decode_known(head: _Head, body: Body, start: int) -> InferRequest | None:
    """Returns what `QuickCodec.decode` does, of tensors that are described as others before them."""
    if start + head.size_bytes != len(body):
        return None
    feeds: dict[str, Array] = {}
    try:
        for spec, shape, size, dtype in head.inputs:
            if dtype is None:
                value = decode_binary(spec.name, spec.datatype, shape, body, start=start, size=size)
            else:
                value = np.ndarray(shape, dtype, body, start)
                if not value.flags.aligned:
                    value = value.copy()
            feeds[spec.name] = value
            start += size
    except InvalidTensor:
        return None
    return InferRequest("", feeds, head.outputs, None)


def _raw_size(entry: dict[str, Any]) -> int | None:
    """Returns the size of an input that comes as raw bytes; None where more is said of it, or what is said is wrong."""
    size = entry["parameters"]["binary_data_size"]
    if type(size) is not int or size < 0 or len(entry["parameters"]) != 1 or "data" in entry:
        return None
    return size


def _fits(spec: TensorSpec, shape: list[int]) -> bool:
    """Whether `shape` is a shape of this tensor."""
    wanted = spec.shape
    if wanted is None or type(shape) is not list or len(shape) != len(wanted):
        return False
    for size, want in zip(shape, wanted, strict=True):
        if type(size) is not int or (size != want and (want >= 0 or size <= 0)):
            return False
    return True


def _from_list(datatype: str, shape: list[int], data: list[object]) -> Array | None:
    """Returns the array of a list of numbers, flat or with one more list around it all."""
    code = _FORMATS.get(datatype)
    if code is None or type(data) is not list:
        return None
    count = math.prod(shape)
    if len(shape) == 2 and shape[0] == 1 and len(data) == 1 and type(data[0]) is list:
        data = data[0]
    if len(data) != count or not ELEMENT_TYPES[datatype].issuperset(map(type, data)):
        return None
    flat: Array = np.frombuffer(struct.pack(f"<{count}{code}", *data), DTYPES[datatype])
    return flat.reshape(shape)
