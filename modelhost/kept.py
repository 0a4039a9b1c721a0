"""What a host keeps for the next one: a file of rows, whole or not there, of one host at a time.

{"kind": "modelhost statistics", "schema": 1, "rows": 2, "sha256": "..."}
{"name": "digits", "version": "1", "inference_count": 12, ...}
{"name": "wine", "version": "1", ...}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, Final

from modelhost import files, locks

log = logging.getLogger("modelhost")

_SCHEMA: Final = 1


class InUse(Exception):
    """Another host keeps its own here."""


class KeptFile:
    """Blocking; one thread at a time. The folder is made, and the file locked, when there is something to write.

    `name` is the file's, `what` it has in words; `lock` is the file that is locked meanwhile, in the same folder.
    """

    def __init__(self, folder: Path, name: str, *, what: str, lock: str) -> None:
        self.folder, self.name, self.what = folder, name, what
        self._lock_name = lock
        self._lock = -1
        self._written = b""

    def read(self) -> list[dict[str, Any]]:
        """Returns the rows that the host before this one has written; none where there was none.

        A file that is damaged, or no such file, is set aside. Raises OSError, and InUse.
        """
        if not self.folder.is_dir():
            return []
        self._take()
        files.remove_left(self.folder)
        place = self.folder / self.name
        try:
            return _parse(place.read_bytes(), self._kind)
        except FileNotFoundError:
            return []
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            place.replace(place.with_suffix(".damaged"))
            log.warning("the %s in %s are damaged (%s): set aside, they begin anew", self.what, place, error)
            return []

    def write(self, rows: list[bytes]) -> None:
        """Writes rows, each a line of JSON, where they have changed. Raises OSError, and InUse."""
        body = b"".join(row + b"\n" for row in rows)
        digest = hashlib.sha256(body).digest()
        if digest == self._written or not (rows or self._written):
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        self._take()
        head = {"kind": self._kind, "schema": _SCHEMA, "rows": len(rows), "sha256": digest.hex()}
        files.write_whole(self.folder / self.name, json.dumps(head).encode() + b"\n" + body)
        self._written = digest

    @property
    def _kind(self) -> str:
        return f"modelhost {self.name}"

    def close(self) -> None:
        """Lets another host have the file; harmless when closed."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _take(self) -> None:
        """Locks the file, for as long as this process lives. Raises OSError, and InUse."""
        if self._lock >= 0:
            return
        lock = os.open(self.folder / self._lock_name, os.O_RDWR | os.O_CREAT, 0o666)
        is_mine = True
        with contextlib.suppress(OSError):  # a file system without locks
            is_mine = locks.try_lock_in_place(lock)
        if not is_mine:
            os.close(lock)
            raise InUse(f"another host keeps its {self.what} in {self.folder}")
        self._lock = lock


def _parse(data: bytes, kind: str) -> list[dict[str, Any]]:
    """Reads the file. Raises ValueError, KeyError or TypeError where it is no such file, or not whole."""
    head_line, _, body = data.partition(b"\n")
    head = json.loads(head_line)
    if (head["kind"], head["schema"]) != (kind, _SCHEMA):
        raise ValueError(f"{head['kind']!r} of schema {head['schema']!r}, expected {kind!r} of schema {_SCHEMA}")
    if hashlib.sha256(body).hexdigest() != head["sha256"]:
        raise ValueError(f"its {len(body)} bytes are not those that were written")
    return [json.loads(line) for line in body.splitlines()]
