"""Where workers come from, in the host: starts the template and forks of it, knows how each ended and what all hold."""

from __future__ import annotations

import contextlib
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from modelhost.precedence import go_as_usual
from modelhost.prepare.failures import is_no_descriptor
from modelhost.prepare.processes import anonymous_bytes, child_environment
from modelhost.runtime.base import LoadError, NoDescriptor
from modelhost.runtime.worker.wire import BrokenWire, Connection, Message
from modelhost.threads import one_thread
from modelhost.units import format_bytes

log = logging.getLogger("modelhost")

#: The module that the template runs.
_TEMPLATE: Final = "modelhost.runtime.worker.template"

#: Longest time that the template takes to start, on a busy machine with a cold disk, and to fork.
_START_S: Final = 60.0
_FORK_S: Final = 10.0

#: Between the moment at which a worker's socket ends and the news of why.
_NEWS_S: Final = 2.0

EndListener = Callable[[str], None]


class Worker:
    """A process that was forked for one model. Any thread."""

    def __init__(self, pid: int, control: Connection, kill: Callable[[int], None]) -> None:
        self.pid, self.control = pid, control
        self._kill = kill
        self._ended = threading.Event()
        self._reason = ""
        self._blame = ""
        self._lock = threading.Lock()
        self._listener: EndListener | None = None
        self._is_expected = False

    @property
    def has_ended(self) -> bool:
        """Whether the process is known to have gone."""
        return self._ended.is_set()

    def watch(self, listener: EndListener) -> None:
        """Has `listener` called, once and on any thread, with the reason, when the process ends by itself."""
        with self._lock:
            if not self._ended.is_set():
                self._listener = listener
                return
        if not self._is_expected:
            listener(self._reason)

    def kill(self, blame: str) -> None:
        """Ends the process; `blame` is the reason that is given for it, where it has none of its own yet."""
        with self._lock:
            if self._ended.is_set():
                return
            self._blame = self._blame or blame
        self._kill(self.pid)

    def dismiss(self, patience_s: float) -> None:
        """Has the process end, which is no crash, and waits until it has; kills one that does not."""
        self._is_expected = True
        self.control.close()
        if not self._ended.wait(patience_s):
            self.kill("it did not end")
            self._ended.wait(_NEWS_S)

    def reason(self) -> str:
        """Returns why the process has ended, or is about to; waits a moment for the news."""
        if not self._ended.wait(_NEWS_S):
            return self._blame or "it closed its connection"
        return self._reason

    def note_end(self, reason: str) -> None:
        """Takes note that the process has gone."""
        with self._lock:
            self._reason = self._blame or reason
            self._ended.set()
            listener = None if self._is_expected else self._listener
        if listener is not None:
            listener(self._reason)


class Nursery:
    """The template and the workers. Any thread; starts the template with the first worker, or with `start`.

    Where the template ends, its workers do; the next worker gets another one.
    """

    def __init__(
        self, *, ceiling_bytes: int, intra_op_threads: int = 1, custom_op_libraries: Sequence[Path] = ()
    ) -> None:
        self._job: Message = {
            "ceiling_bytes": ceiling_bytes,
            "intra_op_threads": intra_op_threads,
            "custom_op_libraries": [str(library.resolve()) for library in custom_op_libraries],
        }
        self._lock = threading.Lock()  # one start and one fork at a time
        self._template: _Template | None = None
        # A process is as nice as the thread that starts it; those that load are nicer than workers should be.
        self._starter = one_thread("modelhost-template", begin=go_as_usual)

    @property
    def is_started(self) -> bool:
        """Whether there is a template."""
        return self._template is not None and not self._template.has_ended

    def start(self) -> None:
        """Starts the template where there is none; returns when it is ready. Raises LoadError."""
        with self._lock:
            try:
                self._started()
            except OSError as error:
                raise _not_started("process for workers", error) from None

    def fork(self) -> Worker:
        """Returns a new worker, in some milliseconds. Raises LoadError."""
        with self._lock:
            try:
                return self._started().fork()
            except OSError as error:
                raise _not_started("worker process", error) from None

    def held_bytes(self) -> int:
        """Returns the memory of the template and all workers, what they share counted once."""
        template = self._template
        if template is None or template.has_ended:
            return 0
        return sum(map(anonymous_bytes, (template.pid, *template.workers())))

    def close(self) -> None:
        """Ends the template, and with it every worker that is left. Harmless when closed."""
        with self._lock:
            if self._template is not None:
                self._template.close()
                self._template = None
            self._starter.shutdown()

    def _started(self) -> _Template:
        if self._template is None or self._template.has_ended:
            began = time.monotonic()
            self._template = self._starter.submit(_Template, self._job).result()
            log.info(
                "started the process that workers are forked from in %.0f ms, %s",
                (time.monotonic() - began) * 1e3,
                format_bytes(anonymous_bytes(self._template.pid)),
            )
        return self._template


class _Template:
    """One template process, from its start to its end, and the thread that listens to it."""

    def __init__(self, job: Message) -> None:
        self._connection, theirs = Connection.pair()
        self._sending = threading.Lock()
        self._answered = threading.Event()
        self._answer: Message = {}
        self._forking: Connection | None = None
        self._workers: dict[int, Worker] = {}
        self.has_ended = False
        with theirs:
            self._process = subprocess.Popen(
                # -P: what lies in the directory that this was started in is no module of ours.
                [sys.executable, "-P", "-m", _TEMPLATE, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env=child_environment(),
                pass_fds=(theirs.fileno(),),
                start_new_session=True,  # Ctrl-C is for us, who end it when all requests have been answered
            )
        threading.Thread(target=self._listen, name="modelhost-workers", daemon=True).start()
        if "ready" not in self._ask(job, (), _START_S):
            self.close()
            raise LoadError(f"the process for workers did not start: {self._answer.get('failed', 'it said nothing')}")

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def workers(self) -> tuple[int, ...]:
        """The workers that live, by their processes."""
        return tuple(self._workers)

    def fork(self) -> Worker:
        """Returns a new worker. Raises LoadError."""
        control, theirs = Connection.pair()
        with theirs:
            self._forking = control
            answer = self._ask({"fork": True}, (theirs.fileno(),), _FORK_S)
        worker = answer.get("worker")
        if not isinstance(worker, Worker):
            control.close()
            raise LoadError(f"no worker can be forked: {answer.get('failed', 'nobody answers')}")
        return worker

    def close(self) -> None:
        """Ends the process and waits for that."""
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()

    def _kill(self, pid: int) -> None:
        # By its parent, who knows that it is still the same process.
        with contextlib.suppress(BrokenWire), self._sending:
            self._connection.send({"kill": pid})

    def _ask(self, message: Message, descriptors: tuple[int, ...], patience_s: float) -> Message:
        """Sends a message and waits for what the listener makes of the answer; empty where none came."""
        self._answered.clear()
        self._answer = {}
        with contextlib.suppress(BrokenWire), self._sending:
            self._connection.send(message, descriptors)
        if not self._answered.wait(patience_s):
            self.close()
        return self._answer

    # --- on the listener's thread ------------------------------------------------------------------------------

    def _listen(self) -> None:
        try:
            while True:
                self._take(self._connection.receive())
        except BrokenWire as error:
            log.debug("the process for workers has gone: %s", error)
        self._process.wait()
        self.has_ended = True
        for pid in self.workers():
            worker = self._workers.pop(pid)
            worker.control.shut()  # where the kernel does not end it with its parent, it reads this
            worker.note_end("it ended with the process that it was forked from")
        self._answer = {"failed": f"it ended with {ending(self._process.returncode)}"}
        self._answered.set()
        self._connection.close()

    def _take(self, message: Message) -> None:
        match message:
            case {"ended": int(pid), "code": int(code)}:
                worker = self._workers.pop(pid, None)
                if worker is not None:
                    worker.note_end(f"it ended with {ending(code)}")
                return
            case {"forked": int(pid)} if self._forking is not None:
                # Known before the next message, which may be that it has ended.
                worker = self._workers[pid] = Worker(pid, self._forking, self._kill)
                self._forking, message = None, {"worker": worker}
        self._answer = message
        self._answered.set()


def _not_started(what: str, error: OSError) -> LoadError:
    kind = NoDescriptor if is_no_descriptor(error) else LoadError
    return kind(f"no {what} can be started: {error.strerror}")


def ending(code: int) -> str:
    """Returns `signal 11 (SIGSEGV)` or `status 1` for an exit code."""
    if code >= 0:
        return f"status {code}"
    try:
        return f"signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"signal {-code}"
