"""What ends limited processes and removes their group where the process that limited them is gone itself."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import weakref
from pathlib import Path
from typing import Final

#: Waits for the end of its standard input, which comes with the end of whoever holds the other side, by SIGKILL
#: too. `$1` is a memory cgroup or empty. Then ends its whole process group, itself included.
_WATCH: Final = """
trap '' INT TERM HUP QUIT
empty() {
    for below in "$1"/*/; do [ -d "$below" ] && empty "${below%/}"; done
    for pid in $(cat "$1/cgroup.procs"); do kill -9 "$pid"; done
    rmdir "$1"
}
read -r _
tries=0
while [ -n "$1" ] && [ -d "$1" ] && [ $tries -lt 200 ]; do
    echo 1 > "$1/cgroup.kill"
    empty "$1" || sleep 0.05 || sleep 1
    tries=$((tries + 1))
done
kill -9 0
"""


class Guard:
    """A shell in a process group of its own (`pgid`), where processes may be put that are to end with it."""

    def __init__(self, group: Path | None = None) -> None:
        read, self._write = os.pipe()
        self._owner = os.getpid()
        _living.add(self)
        try:
            self._process = subprocess.Popen(
                ["/bin/sh", "-c", _WATCH, "modelhost-guard", "" if group is None else str(group)],
                stdin=read,
                stdout=subprocess.DEVNULL,  # whoever reads our output is not to wait for this one's end
                stderr=subprocess.DEVNULL,
                cwd="/",
                process_group=0,
            )
        except BaseException:
            os.close(self._write)
            raise
        finally:
            os.close(read)
        self.pgid: Final = self._process.pid

    def end(self) -> None:
        """Ends the process group, where there is nothing left to remove; not from a fork of the one who made it."""
        if not self.is_ours:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pgid, signal.SIGKILL)
        self._process.wait()
        self.leave()

    def leave(self) -> None:
        """Leaves the rest to the guard; may be called again."""
        if self._write >= 0:
            os.close(self._write)
            self._write = -1

    @property
    def is_ours(self) -> bool:
        """Whether it was made by this process, not inherited by a fork."""
        return self._owner == os.getpid()


#: A fork has its copy of each pipe's end: it would keep the guard waiting.
_living: Final[weakref.WeakSet[Guard]] = weakref.WeakSet()


def _forget() -> None:
    for guard in list(_living):
        guard.leave()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
