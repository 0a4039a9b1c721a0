"""The totals of requests as they lie on disk: one file, whole or not there, of one host at a time.

{"kind": "modelhost statistics", "schema": 1, "models": 2, "sha256": "..."}
{"name": "digits", "version": "1", "inference_count": 12, ...}
{"name": "wine", "version": "1", ...}
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

from modelhost import files

log = logging.getLogger("modelhost")

_KIND: Final = "modelhost statistics"
_SCHEMA: Final = 1
_FILE: Final = "statistics"
_LOCK: Final = "lock"


class InUse(Exception):
    """Another host keeps its totals here."""


class StatisticsFile:
    """Blocking; one thread at a time. The folder is made, and locked, when there is something to write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = -1
        self._written = b""

    def read(self) -> list[dict[str, Any]]:
        """Returns what the host before this one has written; nothing where there was none.

        A file that is damaged, or no such file, is set aside. Raises OSError, and InUse.
        """
        if not self.folder.is_dir():
            return []
        self._take()
        files.remove_left(self.folder)
        place = self.folder / _FILE
        try:
            return _parse(place.read_bytes())
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            place.replace(place.with_suffix(".damaged"))
            log.warning("the statistics in %s are damaged (%s): set aside, totals begin anew", place, error)
            return []

    def write(self, rows: list[bytes]) -> None:
        """Writes the totals, each a line of JSON, where they have changed. Raises OSError, and InUse."""
        body = b"".join(row + b"\n" for row in rows)
        digest = hashlib.sha256(body).digest()
        if digest == self._written or not (rows or self._written):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take()
        head = {"kind": _KIND, "schema": _SCHEMA, "models": len(rows), "sha256": digest.hex()}
        files.write_whole(self.folder / _FILE, json.dumps(head).encode() + b"\n" + body)
        self._written = digest

    def close(self) -> None:
        """Lets another host have the folder; harmless when closed."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take(self) -> None:
        """Locks the folder, for as long as this process lives. Raises OSError, and InUse."""
        if self._lock >= 0:
            return
        lock = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise InUse(f"another host keeps its totals in {self.folder}") from None
        except InUse:
            os.close(lock)
            raise
        self._lock = lock


def _parse(data: bytes) -> list[dict[str, Any]]:
    """Reads the file. Raises ValueError, KeyError or TypeError where it is no such file, or not whole."""
    head_line, _, body = data.partition(b"\n")
    head = json.loads(head_line)
    if (head["kind"], head["schema"]) != (_KIND, _SCHEMA):
        raise ValueError(f"{head['kind']!r} of schema {head['schema']!r}, expected {_KIND!r} of schema {_SCHEMA}")
    if hashlib.sha256(body).hexdigest() != head["sha256"]:
        raise ValueError(f"its {len(body)} bytes are not those that were written")
    return [json.loads(line) for line in body.splitlines()]
