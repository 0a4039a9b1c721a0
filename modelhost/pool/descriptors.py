"""File descriptors that are used up: what those are told who ask for a model, and a condition that ends by itself."""

from __future__ import annotations

import contextlib
import os
from typing import Final

from modelhost.conditions import Conditions
from modelhost.errors import Overloaded
from modelhost.pool.key import ModelKey

_USED_UP: Final = "descriptors_used_up"


def no_descriptor(key: ModelKey, conditions: Conditions) -> Overloaded:
    """Returns what those are told for whose model no file descriptor is left, and notes that as a condition."""
    refusal = none_left(f"open {key}")
    conditions.note(_USED_UP, f"{refusal}; what is loaded goes on", is_over=_has_descriptor)
    return refusal


def none_left(to_do: str) -> Overloaded:
    """Returns the refusal of what needs a descriptor; it may come again, as nothing else is wrong."""
    limit = _descriptor_limit()
    text = f"no file descriptor is left to {to_do}: all {limit} are in use (ulimit -n)"
    return Overloaded("file descriptors", waiting=0, limit=limit, text=text)


def _descriptor_limit() -> int:
    with contextlib.suppress(ImportError):  # not on Windows
        import resource

        return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return 0


def _has_descriptor() -> bool:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        return False
    return True
