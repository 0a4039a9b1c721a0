"""Why a model could not be prepared or measured: in words, and of which kind."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Final, Literal

from modelhost.errors import NO_DESCRIPTOR

#: `memory`: its ceiling was met, or the kernel ended it; `time`: its deadline; `disk`: the cache cannot
#: be written, or is full; `changed`: the model's files were replaced meanwhile; `cancelled`: by
#: `Child.kill`; `model`: ONNX Runtime refuses to open it; `descriptors`: this process had none left; `crash`: it
#: ended by a signal, or without a word.
Kind = Literal["memory", "time", "disk", "changed", "cancelled", "model", "descriptors", "crash"]

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

#: No descriptor is left: ONNX Runtime says the number, or that and the words.
_NO_DESCRIPTOR_WORDS: Final = re.compile(
    rf"{os.strerror(errno.EMFILE)}|(?:system error number|errcode =) (?:{errno.EMFILE}|{errno.ENFILE})\b"
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


def is_no_descriptor(error: BaseException) -> bool:
    """Says whether an error is that of descriptors that are used up: it says nothing about what was to be opened."""
    if isinstance(error, OSError):
        return error.errno in NO_DESCRIPTOR
    return _NO_DESCRIPTOR_WORDS.search(str(error)) is not None


def failed_to_read(error: OSError, file: Path, kind: Kind) -> PrepareFailed:
    """Returns the failure, of a kind, for an error of the file system; `file` is where it does not say."""
    text = f"{error.filename or file}: {error.strerror}"
    return PrepareFailed(text, "descriptors" if is_no_descriptor(error) else kind)
