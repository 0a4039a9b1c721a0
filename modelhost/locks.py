"""Locks on open files, which end with their process, whatever ends it."""

from __future__ import annotations

import errno
import os
from importlib import import_module
from typing import Any, Final

fcntl: Any
try:
    fcntl = import_module("fcntl")
except ImportError:  # Windows
    fcntl = None

#: Whether files can be renamed while they are open, and folders be opened: not on Windows.
ARE_HELD_OVER_RENAMES: Final = fcntl is not None


def lock(descriptor: int) -> None:
    """Locks what is to be renamed, until it is closed, once nobody else has it. Raises OSError where there are no
    such locks: on Windows, and on some file systems."""
    _check()
    fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_lock(descriptor: int) -> bool:
    """Locks as `lock` does, unless somebody else has it: then it returns False. Raises OSError, too."""
    _check()
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def try_lock_in_place(descriptor: int) -> bool:
    """Locks a file that stays where it is and that nobody reads, opened at its beginning; False where somebody else
    has it. Raises OSError where the file system has no locks."""
    if fcntl is not None:
        return try_lock(descriptor)
    import msvcrt

    try:  # the first byte, whether there is one or not
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    except PermissionError:
        return False
    return True


def _check() -> None:
    if fcntl is None:
        raise OSError(errno.ENOTSUP, os.strerror(errno.ENOTSUP))
