"""The template of workers: has everything imported and set up that they share, and forks one when it is asked to.

`python -m modelhost.runtime.worker.template DESCRIPTOR`, with one end of a local socket. It has one thread, opens no
model and only waits. A fork shares its pages, so that a worker takes milliseconds and few megabytes. It is the parent
of the workers: it alone knows for sure that a process is still the one that it started.
"""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Final

from modelhost.precedence import go_as_usual
from modelhost.runtime.building_steps import end_with_parent, trim_heap
from modelhost.runtime.engine import Arena, set_up
from modelhost.runtime.worker.process import serve
from modelhost.runtime.worker.wire import BrokenWire, Connection, Message

#: Whom the kernel kills first where memory runs out: workers, which are started again, before this process, whose
#: end they share, before the host.
_WORKER_SCORE, _TEMPLATE_SCORE = 1000, 900

_READ_BYTES: Final = 4096


def main() -> None:
    """Sets up and waits for orders, until the host has gone."""
    host = Connection(socket.socket(fileno=int(sys.argv[1])))
    with contextlib.suppress(BrokenWire):
        _Template(host, host.receive()).wait()
    os._exit(0)  # the workers read the host's end themselves


class _Template:
    def __init__(self, host: Connection, job: Message) -> None:
        self._host = host
        self._ceiling_bytes: int = job["ceiling_bytes"]
        self._threads: int = job["intra_op_threads"]
        self._libraries = tuple(map(Path, job["custom_op_libraries"]))
        self._workers: set[int] = set()
        _stand_back(_TEMPLATE_SCORE)
        go_as_usual()  # the host's thread that has started this one lets others go first
        # With threads inside of runs ONNX Runtime starts them here, and a fork would be without: each sets itself up.
        self._arena = None if self._threads > 1 else self._new_arena()
        self._ended, ending = socket.socketpair()
        for end in (self._ended, ending):
            end.setblocking(False)
        self._ending = ending
        signal.set_wakeup_fd(ending.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        trim_heap()
        gc.collect()
        gc.freeze()  # a collection in a fork would write to every page
        host.send({"ready": os.getpid()})

    def wait(self) -> None:
        """Starts and ends workers as the host says. Raises BrokenWire when that has gone."""
        while True:
            readable, _, _ = select.select([self._host.fileno(), self._ended.fileno()], [], [])
            if self._ended.fileno() in readable:
                self._reap()
            if self._host.fileno() in readable:
                message, descriptors = self._host.receive_all()
                if "fork" in message:
                    self._fork(descriptors[0])
                elif message.get("kill") in self._workers:
                    os.kill(message["kill"], signal.SIGKILL)

    def _fork(self, descriptor: int) -> None:
        parent = os.getpid()
        try:
            child = os.fork()
        except OSError as error:
            self._host.send({"failed": error.strerror})
        else:
            if child == 0:
                self._become_worker(descriptor, parent)
            self._workers.add(child)
            self._host.send({"forked": child})
        os.close(descriptor)

    def _become_worker(self, descriptor: int, parent: int) -> None:
        try:
            end_with_parent(parent)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for end in (self._host, self._ended, self._ending):
                end.close()
            _stand_back(_WORKER_SCORE)
            arena = self._arena or self._new_arena()
            control = Connection(socket.socket(fileno=descriptor))
            serve(control, arena, ceiling_bytes=self._ceiling_bytes, intra_op_threads=self._threads)
            os._exit(0)
        finally:
            os._exit(1)

    def _new_arena(self) -> Arena:
        set_up(self._ceiling_bytes, intra_op_threads=self._threads, custom_op_libraries=self._libraries)
        return Arena(intra_op_threads=self._threads)

    def _reap(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._ended.recv(_READ_BYTES):
                pass
        while self._workers:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._workers.discard(pid)
            self._host.send({"ended": pid, "code": os.waitstatus_to_exitcode(status)})


def _stand_back(score: int) -> None:
    with contextlib.suppress(OSError):  # some sandboxes have no such file
        Path("/proc/self/oom_score_adj").write_text(str(score))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


if __name__ == "__main__":
    main()
