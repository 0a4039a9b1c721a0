"""Why a model could not be prepared or measured: in words, and of which kind."""

from __future__ import annotations

import re
from typing import Final, Literal

#: `memory`: its ceiling was met, or the kernel ended it; `time`: its deadline; `disk`: the cache cannot
#: be written, or is full; `changed`: the model's files were replaced meanwhile; `cancelled`: by
#: `Child.kill`; `model`: ONNX Runtime refuses to open it; `crash`: it ended by a signal, or without a word.
Kind = Literal["memory", "time", "disk", "changed", "cancelled", "model", "crash"]

#: What ONNX Runtime's arena says when its ceiling is reached.
ARENA_FULL: Final = re.compile(r"Available memory of (\d+) is smaller than requested bytes of (\d+)")

_NO_MEMORY: Final = (
    "bad_alloc",
    "MemoryError",
    "Cannot allocate memory",
    "Failed to allocate memory",
    "Available memory of",  # the arena, which has the same ceiling
)

_NO_DISK: Final = (
    "No space left on device",
    "Disk quota exceeded",
    "Input/output error",
    "File too large",
    "Failed to write",  # ONNX Runtime, which does not say why
    " requested and ",  # numpy, which does not either: "8192 requested and 4096 written"
)


class PrepareFailed(Exception):
    """The child ended without a result; the text says why, with the ceiling that it met."""

    def __init__(self, text: str, kind: Kind) -> None:
        super().__init__(text)
        self.kind: Kind = kind


def is_no_memory(text: str) -> bool:
    """Says whether an error's words are those of memory that ran out."""
    return any(word in text for word in _NO_MEMORY)


def is_no_disk(text: str) -> bool:
    """Says whether an error's words are those of a disk that took no more."""
    return any(word in text for word in _NO_DISK)
