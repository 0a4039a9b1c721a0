"""The weights of an .onnx file: how many bytes its tensors hold, and where."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Final

from modelhost.repository.element_types import INT64, STRING, packed_bytes
from modelhost.repository.wire import (
    OnnxFormatError,
    WireReader,
    length_field,
    signed,
    varint_field,
)

#: More dimensions than any operator takes; bounds the work on one shape.
MAX_RANK: Final = 64

# TensorProto
_DIMS, _DIMS_PACKED = varint_field(1), length_field(1)
_DATA_TYPE = varint_field(2)
_STRING_DATA = length_field(6)
_INT64_DATA, _INT64_DATA_PACKED = varint_field(7), length_field(7)
_NAME = length_field(8)
_RAW_DATA = length_field(9)
_EXTERNAL_DATA = length_field(13)
_DATA_LOCATION = varint_field(14)
_EXTERNAL: Final = 1
# SparseTensorProto
_SPARSE_VALUES, _SPARSE_INDICES = length_field(1), length_field(2)
_SPARSE_DIMS, _SPARSE_DIMS_PACKED = varint_field(3), length_field(3)
# StringStringEntryProto
_KEY, _VALUE = length_field(1), length_field(2)


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's name as it is in the file, and its element type."""

    name: bytes
    element_type: int
    size_bytes: int = 0
    item_bytes: int = 1


class TensorReader:
    """Reads tensors one by one and sums up their bytes; for one file and one thread.

    `inline_bytes` are in the .onnx file, `external_bytes` in files beside it, `generated_bytes`
    appear only when the model is loaded.
    """

    def __init__(self, wire: WireReader, file: Path) -> None:
        self._wire = wire
        self._file, self._folder = file, file.parent
        self._external_sizes: dict[str, int] = {}  # by location
        self.inline_bytes = 0
        self.external_bytes = 0
        self.generated_bytes = 0
        self.largest_bytes = 0

    @property
    def external_files(self) -> tuple[str, ...]:
        """The locations of external data, relative to the model's folder, as they first appear."""
        return tuple(self._external_sizes)

    def read(self, start: int, end: int) -> Tensor:
        """Reads the TensorProto at `start:end` and counts its bytes, without touching them."""
        dims: list[int] = []
        name, element_type, stored, location = b"", 0, 0, 0
        raw: int | None = None
        external: list[tuple[int, int]] = []
        for tag, value, last in self._wire.fields(start, end):
            if tag == _DIMS or tag == _DIMS_PACKED:
                self._extend(dims, tag, value, last)
            elif tag == _DATA_TYPE:
                element_type = value
            elif tag == _NAME:
                name = self._wire.read(value, last)
            elif tag == _RAW_DATA:
                raw = last - value
            elif tag == _STRING_DATA:
                stored += last - value
            elif tag == _EXTERNAL_DATA:
                external.append((value, last))
            elif tag == _DATA_LOCATION:
                location = value
        size_bytes = stored if element_type == STRING else dense_bytes(dims, element_type, name)
        item = packed_bytes(element_type, 1) or 1
        if location == _EXTERNAL:
            self._check_external(external, size_bytes, name)
            self.external_bytes += size_bytes
            self.largest_bytes = max(self.largest_bytes, size_bytes)
            return Tensor(name, element_type, size_bytes, item)
        if raw is not None and raw != size_bytes:
            raise OnnxFormatError(f"tensor {shown(name)} holds {raw} bytes, its shape {dims} takes {size_bytes}")
        self.inline_bytes += size_bytes
        self.largest_bytes = max(self.largest_bytes, size_bytes)
        return Tensor(name, element_type, size_bytes, item)

    def read_sparse(self, start: int, end: int) -> Tensor:
        """Reads the SparseTensorProto at `start:end`, which ONNX Runtime makes dense at load."""
        dims: list[int] = []
        values = Tensor(b"", 0)
        for tag, value, last in self._wire.fields(start, end):
            if tag == _SPARSE_VALUES:
                values = self.read(value, last)
            elif tag == _SPARSE_INDICES:
                self.read(value, last)
            elif tag == _SPARSE_DIMS or tag == _SPARSE_DIMS_PACKED:
                self._extend(dims, tag, value, last)
        self.generated_bytes += dense_bytes(dims, values.element_type, values.name)
        return values

    def read_integers(self, start: int, end: int) -> tuple[int, ...] | None:
        """Returns the numbers in the INT64 TensorProto at `start:end`, None where it holds no such.

        External data is not followed: a shape is a few numbers, and no exporter puts those there.
        """
        numbers: list[int] = []
        is_int64 = False
        for tag, value, last in self._wire.fields(start, end):
            if tag == _DATA_TYPE:
                is_int64 = value == INT64
            elif tag == _DATA_LOCATION and value == _EXTERNAL:
                return None
            elif tag == _INT64_DATA or tag == _INT64_DATA_PACKED:
                self._extend(numbers, tag, value, last)
            elif tag == _RAW_DATA:
                raw = self._wire.read(value, min(last, value + 8 * (MAX_RANK + 1)))
                numbers += (int.from_bytes(raw[at : at + 8], "little", signed=True) for at in range(0, len(raw), 8))
            if len(numbers) > MAX_RANK:
                raise OnnxFormatError(f"a shape of more than {MAX_RANK} dimensions")
        return tuple(numbers) if is_int64 else None

    def _extend(self, numbers: list[int], tag: int, value: int, last: int) -> None:
        """Adds the field's number, or its packed numbers, to `numbers`."""
        if tag & 7:
            numbers += self._wire.packed_integers(value, last, limit=MAX_RANK)
        else:
            numbers.append(signed(value))
        if len(numbers) > MAX_RANK:
            raise OnnxFormatError(f"a shape of more than {MAX_RANK} dimensions")

    def _check_external(self, entries: Sequence[tuple[int, int]], size_bytes: int, name: bytes) -> None:
        """Raises OnnxFormatError unless the tensor's bytes are there, in the model's own folder."""
        wanted: dict[str, str] = {}
        for start, end in entries:
            key = text = ""
            for tag, value, last in self._wire.fields(start, end):
                if tag == _KEY:
                    key = self._wire.text(value, last)
                elif tag == _VALUE:
                    text = self._wire.text(value, last)
            if key in wanted:  # which of the two a reader takes is its own affair
                raise OnnxFormatError(f"tensor {shown(name)} has two values for '{key[:40]}' of its external data")
            wanted[key] = text
        location = wanted.get("location", "")
        offset = _size(wanted.get("offset"), 0, name)
        length = _size(wanted.get("length"), size_bytes, name)
        if length < size_bytes:
            raise OnnxFormatError(f"tensor {shown(name)} takes {size_bytes} bytes, its external data are {length}")
        have = self._external_size(location, name)
        if offset + length > have:
            raise OnnxFormatError(
                f"external file '{location}' has {have} bytes, "
                f"tensor {shown(name)} wants bytes {offset} to {offset + length}"
            )

    def _external_size(self, location: str, name: bytes) -> int:
        """Returns the size of the file at `location`, looked up once."""
        if location in self._external_sizes:
            return self._external_sizes[location]
        # A Windows path splits at both kinds of slash, so one check covers both systems.
        path = PureWindowsPath(location)
        if not location or "\0" in location or path.anchor or ".." in path.parts:
            raise OnnxFormatError(
                f"tensor {shown(name)} has its data in {location[:200]!r}, which is not a file in the model's folder"
            )
        try:
            found = os.stat(self._folder / location)
        except (FileNotFoundError, NotADirectoryError):
            raise OnnxFormatError(f"external file '{location}' is missing") from None
        if not stat.S_ISREG(found.st_mode):
            raise OnnxFormatError(f"external file '{location}' is not a regular file")
        if not self._is_own(location):
            raise OnnxFormatError(f"external file '{location}' is a link to a file outside the model's folder")
        self._external_sizes[location] = found.st_size
        return found.st_size

    def _is_own(self, location: str) -> bool:
        """Says whether a file, where its links have led, is in the model's folder: the one that the model file is in,
        or is linked from, as in stores that keep each file once and link to it."""
        real = os.path.realpath(self._folder / location)
        folders = (os.path.realpath(self._folder), os.path.dirname(os.path.realpath(self._file)))
        return any(os.path.commonpath((real, folder)) == folder for folder in folders)


def dense_bytes(dims: Sequence[int], element_type: int, name: bytes) -> int:
    """Returns the bytes of a dense tensor. Raises OnnxFormatError where no such tensor can be."""
    if any(dim < 0 for dim in dims):
        raise OnnxFormatError(f"tensor {shown(name)} has the impossible shape {list(dims)}")
    elements = 0 if 0 in dims else 1
    for dim in dims if elements else ():
        elements *= dim
    size_bytes = packed_bytes(element_type, elements)
    if size_bytes is None:
        raise OnnxFormatError(f"tensor {shown(name)} has the unknown element type {element_type}")
    if size_bytes >= 1 << 63:
        raise OnnxFormatError(f"tensor {shown(name)} of shape {list(dims)} fits no memory")
    return size_bytes


def shown(name: bytes) -> str:
    """Returns a name from the file as messages show it."""
    return repr(name[:100].decode(errors="replace"))


def _size(text: str | None, default: int, name: bytes) -> int:
    if text is None:
        return default
    # 19 digits hold any file size, and keep int() from working on thousands of them.
    if not (text.isascii() and text.isdigit() and len(text) <= 19):
        raise OnnxFormatError(f"tensor {shown(name)} has external data at {text[:40]!r}, which is no number")
    return int(text)
