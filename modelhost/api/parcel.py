"""Named tensors on their way between the processes of a host: a head of JSON, and each tensor's bytes, aligned.

V2's binary form would do but for the alignment, without which whoever takes a tensor has to copy it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, TypeAlias

import orjson

from modelhost.api.codec import json_texts
from modelhost.api.codec.binary_tensors import decode_binary, encode_texts
from modelhost.api.codec.response import little_endian, texts_of
from modelhost.errors import UnrepresentableOutput
from modelhost.tensors import Array, datatype_of

Buffer: TypeAlias = bytes | memoryview

#: Where tensors begin; no number needs more.
_ALIGNED: Final = 16

#: What a text is as an object in an array, beside its characters.
_TEXT_BYTES: Final = 96


def pack(
    head: dict[str, Any], tensors: Iterable[tuple[str, Array]], *, structured: Sequence[str] = ()
) -> tuple[int, list[Buffer]]:
    """Returns the size of a parcel's head, and its pieces: the head first, then tensors as views where they can be.

    The elements of those that are `structured` go as their JSON text. Raises UnrepresentableOutput where there is no
    datatype for one.
    """
    entries: list[tuple[str, str, Sequence[int], int]] = []
    pieces: list[Buffer] = [b""]  # the head, once it is known
    for name, array in tensors:
        datatype = "BYTES" if name in structured else datatype_of(array.dtype)
        if datatype is None:
            raise UnrepresentableOutput(f"tensor '{name}': V2 has no datatype for numpy {array.dtype}")
        flat = array.ravel()
        if datatype == "BYTES":
            texts = json_texts(name, flat) if name in structured else texts_of(name, flat)
            raw: Buffer = encode_texts(name, texts)
        else:
            raw = little_endian(flat, datatype)
        entries.append((name, datatype, array.shape, len(raw)))
        pieces.append(raw)
        if padding := -len(raw) % _ALIGNED:
            pieces.append(bytes(padding))
    text = orjson.dumps({**head, "tensors": entries})
    pieces[0] = text.ljust(len(text) + -len(text) % _ALIGNED)
    return len(pieces[0]), pieces


def unpack_head(head: Buffer) -> dict[str, Any]:
    """Returns what a parcel's head says."""
    document: dict[str, Any] = orjson.loads(head)
    return document


def tensor_names(head: dict[str, Any]) -> list[str]:
    """Returns the names of the tensors in a parcel, in order."""
    return [name for name, *_ in head["tensors"]]


def text_cost_bytes(head: dict[str, Any]) -> int:
    """Returns an upper bound for what `unpack` makes beside the parcel's own bytes, on which numbers are views."""
    texts = [(math.prod(shape), size) for _, datatype, shape, size in head["tensors"] if datatype == "BYTES"]
    return sum(_TEXT_BYTES * count + 4 * size for count, size in texts)  # four bytes for the widest character


def unpack(head: dict[str, Any], body: Buffer) -> dict[str, Array]:
    """Returns the tensors of a parcel by name; `body` is what follows the head, of which numbers are views."""
    tensors: dict[str, Array] = {}
    start = 0
    for name, datatype, shape, size in head["tensors"]:
        tensors[name] = decode_binary(name, datatype, shape, body, start=start, size=size)
        start += size + -size % _ALIGNED
    return tensors
