"""The protobuf wire format, read field by field from a file without loading what is skipped.

It knows tags, lengths and numbers; what the fields mean is left to the modules that read ONNX.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Final

VARINT: Final = 0
FIXED64: Final = 1
LENGTH: Final = 2
FIXED32: Final = 5

#: A tag and a length or a number: two varints of at most ten bytes.
_HEADER_BYTES: Final = 20
#: One read. Small, so that stepping over a weight drags little of it into the page cache; large
#: enough that a header-heavy file of 1 MB takes 64 reads.
_WINDOW_BYTES: Final = 16 << 10
#: Names and the like. A longer one is damage, and must not be read into memory.
_TEXT_BYTES: Final = 64 << 10


class OnnxFormatError(ValueError):
    """The file is not a model that can be loaded; the message says what is wrong and where."""


def varint_field(number: int) -> int:
    """Returns the tag of field `number` holding an integer."""
    return number << 3 | VARINT


def length_field(number: int) -> int:
    """Returns the tag of field `number` holding bytes, text, a message or packed numbers."""
    return number << 3 | LENGTH


class WireReader:
    """Reads one open file through a small moving window; for one thread.

    The file is read, not mapped: another process that truncates a mapped file would end this one
    with SIGBUS, here it is an error with a position.
    """

    def __init__(self, file: io.FileIO, size_bytes: int) -> None:
        self._file = file
        self._size = size_bytes
        self._base = 0  # position in the file of the window's first byte
        self._safe = 0  # positions from `_base` up to here have their whole header in the window
        self._window = b""

    def fields(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yields `(tag, value, end)` for each field of the message at `start:end`.

        `value` is the number itself for a varint, otherwise the position of the first byte; `end`
        is the position behind the field. Nothing is read of what the caller does not ask for.
        Raises OnnxFormatError where the bytes are no message.
        """
        position = start
        while position < end:
            if not self._base <= position < self._safe:
                self._move(position)
            base, window = self._base, self._window
            offset = position - base
            tag = window[offset]
            offset += 1
            if tag >= 0x80:
                tag, offset = self._varint(offset - 1)
            kind = tag & 7
            if kind == LENGTH or kind == VARINT:
                value = window[offset]
                offset += 1
                if value >= 0x80:
                    value, offset = self._varint(offset - 1)
                position = base + offset
                if kind == LENGTH:
                    position += value
                    value = base + offset
            elif kind == FIXED32 or kind == FIXED64:
                value = base + offset
                position = value + (4 if kind == FIXED32 else 8)
            else:
                raise OnnxFormatError(f"damaged at byte {position}: wire type {kind} is not in use")
            if tag < 8:
                raise OnnxFormatError(f"damaged at byte {base + offset}: field number 0")
            if position > end:
                raise self._overrun(end, position)
            yield tag, value, position

    def packed_integers(self, start: int, end: int, *, limit: int) -> list[int]:
        """Returns the signed 64-bit varints at `start:end`, at most `limit + 1` of them."""
        numbers: list[int] = []
        position = start
        while position < end and len(numbers) <= limit:
            if not self._base <= position < self._safe:
                self._move(position)
            value, offset = self._varint(position - self._base)
            position = self._base + offset
            if position > end:
                raise self._overrun(end, position)
            numbers.append(signed(value))
        return numbers

    def read(self, start: int, end: int) -> bytes:
        """Returns the bytes at `start:end`. Raises OnnxFormatError where no name is as long."""
        if end - start > _TEXT_BYTES:
            raise OnnxFormatError(f"damaged at byte {start}: a name of {end - start} bytes")
        offset = start - self._base
        if offset >= 0 and end - self._base <= len(self._window):
            return self._window[offset : end - self._base]
        return self._pread(start, end - start)

    def text(self, start: int, end: int) -> str:
        """Returns the UTF-8 text at `start:end`. Raises OnnxFormatError where it is none."""
        try:
            return self.read(start, end).decode()
        except UnicodeDecodeError:
            raise OnnxFormatError(f"damaged at byte {start}: a name that is not UTF-8") from None

    def _move(self, position: int) -> None:
        data = self._pread(position, min(_WINDOW_BYTES, self._size - position))
        self._base = position
        at_end = position + len(data) >= self._size
        # Zeros behind the last byte end any varint, so decoding needs no check of its own; a field
        # that reaches into them overruns its message and is refused there.
        self._window = data + bytes(_HEADER_BYTES) if at_end else data
        self._safe = position + len(data) - (0 if at_end else _HEADER_BYTES)

    def _pread(self, position: int, count: int) -> bytes:
        self._file.seek(position)
        parts = []
        while count > 0:
            part = self._file.read(count)
            if not part:
                raise OnnxFormatError(f"truncated at byte {self._file.tell()} while it was read")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _varint(self, offset: int) -> tuple[int, int]:
        """Returns the unsigned number at `offset` of the window, and the offset behind it."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self._window[offset]
            offset += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, offset
        raise OnnxFormatError(f"damaged at byte {self._base + offset}: a number of over ten bytes")

    def _overrun(self, end: int, position: int) -> OnnxFormatError:
        if end >= self._size:
            return OnnxFormatError(f"truncated at byte {end}: a field reaches to byte {position}")
        return OnnxFormatError(f"damaged at byte {end}: a field reaches beyond its message, to byte {position}")


def signed(value: int) -> int:
    """Returns a 64-bit varint as the signed number that int64 fields mean."""
    return value - (1 << 64) if value >= 1 << 63 else value
