"""The small files in which the kernel says its figures: read whole, with three system calls.

`Path.read_bytes` makes nine and builds two objects. A host reads some such files four times a second for as long as it
lives, with caches that have gone cold in between: there it is two thirds of what a look at memory costs.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_CHUNK_BYTES: Final = 16 << 10


def read_file(path: str | Path) -> bytes:
    """Returns what a file has. Any thread. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        text = os.read(descriptor, _CHUNK_BYTES)
        if len(text) < _CHUNK_BYTES:  # the kernel writes such a file whole, as far as there is room for it
            return text
        chunks = [text]
        while text := os.read(descriptor, _CHUNK_BYTES):
            chunks.append(text)
        return b"".join(chunks)
    finally:
        os.close(descriptor)


def figure(table: bytes, name: bytes) -> int | None:
    """Returns the number behind `name` in lines of a name and a number; None where there is no such line.

    Raises ValueError where something else stands behind it.
    """
    line = name + b" "
    if table.startswith(line):
        begin = len(line)
    elif (at := table.find(b"\n" + line)) >= 0:
        begin = at + 1 + len(line)
    else:
        return None
    end = table.find(b"\n", begin)
    return int(table[begin:] if end < 0 else table[begin:end])
