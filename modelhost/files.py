"""Files that are there whole or not at all, whatever ends the process; and what a crash left of others.

Everything is written aside, under a name that begins with `tmp-`, and renamed into its place when the disk has it.
What is being written is locked: the lock ends with its process, so that leftovers can be told from work in progress,
that of other processes included. Where there are no locks, as on Windows, their age tells.

What is done again and again names files by text. A `Path` puts each of its parts into the interpreter's table of
names, which keeps the place of those that are gone until it is full; then it doubles, by 1 MB in a host.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from modelhost import locks

_ASIDE: Final = "tmp-"
_CHUNK_BYTES: Final = 1 << 20

#: What has no lock, as the file system has none, is left by a crash where nobody has touched it for so long.
_ABANDONED_S: Final = 3600.0

#: Between two looks at whether a turn has come: what is waited for takes a second or more.
_TURN_POLL_S: Final = 0.02

#: What a folder says that is not to be written to: that is how the host was set up, and nothing to warn of.
READ_ONLY: Final = (errno.EROFS, errno.EACCES, errno.EPERM)

#: What file systems say that cannot sync a folder; they have nothing to lose.
_NOTHING_TO_SYNC: Final = (errno.EINVAL, errno.ENOTSUP)


def write_whole(file: Path, data: bytes, *, aside_in: Path | None = None) -> None:
    """Writes a small file so that it is there whole or as it was before. Raises OSError.

    It is written in `aside_in` first (of the same file system; by default the file's own folder), which
    somebody has to clean with `remove_left`.
    """
    aside, descriptor = _make_file(file.parent if aside_in is None else aside_in)
    try:
        with open(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(descriptor)
            if not locks.ARE_HELD_OVER_RENAMES:
                stream.close()
            os.replace(aside, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise
    sync_folder(file.parent)


@contextlib.contextmanager
def folder_aside(parent: Path) -> Iterator[Path]:
    """Yields a new folder to build something in; what is left of it at the end is removed. Raises OSError.

    It is locked meanwhile. Others may read it as the umask says.
    """
    parent.mkdir(parents=True, exist_ok=True)
    folder, lock = _make_folder(parent)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextlib.contextmanager
def turn(parent: Path, name: str, *, gives_up: Callable[[], bool]) -> Iterator[bool]:
    """Waits while another process has the turn of this name; yields whether it is ours now. Blocking. Raises OSError.

    It is not where `gives_up` says so first, or where the file system has no locks. A turn ends with its process; the
    file that stands for it is one aside, so that what a crash leaves of it goes with the rest.
    """
    parent.mkdir(parents=True, exist_ok=True)
    place = f"{parent}/{_ASIDE}{name}"
    descriptor = _take_turn(place, gives_up)
    try:
        yield descriptor >= 0
    finally:
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.unlink(place)  # who waits for it sees that it is gone, and makes another
            os.close(descriptor)


def _take_turn(place: str, gives_up: Callable[[], bool]) -> int:
    """Returns the locked file of a turn, -1 where there is none to be had. Raises OSError."""
    while True:
        descriptor = os.open(place, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            while not locks.try_lock(descriptor):
                if gives_up():
                    os.close(descriptor)
                    return -1
                time.sleep(_TURN_POLL_S)
        except OSError:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                os.unlink(place)
            return -1
        if _is_at(place, descriptor):
            return descriptor
        os.close(descriptor)


def _is_at(place: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(place), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def new_aside(parent: Path) -> str:
    """Returns a path that nobody has used: by chance, as hosts in containers are all process number 1."""
    return f"{parent}/{_ASIDE}{secrets.token_hex(8)}"


def is_aside(entry: Path) -> bool:
    """Says whether a file or folder is one that is being written, or was left by a crash."""
    return entry.name.startswith(_ASIDE)


def sync_file(file: Path) -> None:
    """Returns when the disk has a file's content. Raises OSError."""
    _sync(file)


def sync_folder(folder: Path) -> None:
    """Returns when the disk has a folder's names; on Windows that is the system's own affair. Raises OSError."""
    try:
        if locks.ARE_HELD_OVER_RENAMES:
            _sync(folder)
    except OSError as error:
        if error.errno not in _NOTHING_TO_SYNC:
            raise


def digest_of(file: Path) -> str:
    """Returns the SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def size_bytes(entry: Path) -> int:
    """Returns the bytes of the files in a folder, or of a file; what goes meanwhile has none."""
    total = 0
    for path in (entry, *entry.rglob("*")):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def entries(folder: Path) -> list[Path]:
    """Returns what is in a folder, sorted; nothing where it cannot be read."""
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


# --- removing ------------------------------------------------------------------------------------------


def remove(entry: Path) -> int:
    """Removes a folder or a file as far as that is allowed; returns the bytes that went.

    It is out of its place at once: a process that is killed meanwhile leaves no half of it there.
    """
    size, aside = size_bytes(entry), Path(new_aside(entry.parent))
    try:
        if not is_aside(entry):
            entry.rename(aside)
            entry = aside
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()
    except OSError:
        return size - size_bytes(entry)
    return size - size_bytes(entry)


def remove_left(folder: Path) -> int:
    """Removes what crashes left aside in a folder, and nothing that a process is at work on; returns the bytes."""
    return sum(_remove_left(entry) for entry in entries(folder) if is_aside(entry))


def _remove_left(entry: Path) -> int:
    try:
        descriptor = os.open(entry, os.O_RDONLY)
    except OSError:
        return 0 if _is_young(entry) else remove(entry)
    try:
        try:
            if not locks.try_lock(descriptor):
                return 0
        except OSError:  # a file system without locks
            if _is_young(entry):
                return 0
        return remove(entry)  # locked: who has just made it sees that it is gone
    finally:
        os.close(descriptor)


def _is_young(entry: Path) -> bool:
    """Says whether somebody may still be at work on it; a time to come is one of a clock that was wrong."""
    newest = 0.0
    for path in (entry, *entry.rglob("*")):
        with contextlib.suppress(OSError):
            newest = max(newest, path.stat().st_mtime)
    return abs(time.time() - newest) < _ABANDONED_S


# --- making --------------------------------------------------------------------------------------------


def _make_file(parent: Path) -> tuple[str, int]:
    """Makes and locks a file aside, which others may read as the umask says. Raises OSError."""
    while True:
        aside = new_aside(parent)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        if _has_lock(aside, descriptor):
            return aside, descriptor


def _make_folder(parent: Path) -> tuple[Path, int | None]:
    """Makes a folder aside, and locks it where that can be. Raises OSError."""
    while True:
        aside = Path(new_aside(parent))
        aside.mkdir()
        if not locks.ARE_HELD_OVER_RENAMES:
            return aside, None
        try:
            descriptor = os.open(aside, os.O_RDONLY)
        except FileNotFoundError:  # another process's cleaning came before it could be opened
            continue
        except OSError:
            aside.rmdir()
            raise
        if _has_lock(aside, descriptor):
            return aside, descriptor


def _has_lock(aside: str | Path, descriptor: int) -> bool:
    """Locks what has just been made; returns False, closed, where another process's cleaning came first."""
    with contextlib.suppress(OSError):  # a file system without locks
        locks.lock(descriptor)
    if os.path.exists(aside):
        return True
    os.close(descriptor)
    return False


def _sync(path: Path) -> None:
    # Windows syncs only what may be written to.
    descriptor = os.open(path, os.O_RDONLY if locks.ARE_HELD_OVER_RENAMES else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
