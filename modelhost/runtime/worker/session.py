"""A session that lives in a worker, as the host uses it: opened, run, stopped, trimmed, closed."""

from __future__ import annotations

import contextlib
import itertools
import logging
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelhost.errors import DeadlineExceeded, Overloaded, WorkerCrashed, WorkerRestarting
from modelhost.prepare.manifest import Variant
from modelhost.runtime.base import CancelToken
from modelhost.runtime.worker.channel import Channel, NotStopped, NotTaken, RefusedThere
from modelhost.runtime.worker.nursery import Worker
from modelhost.runtime.worker.wire import PATIENT_S, BrokenWire, Connection, WireEnded
from modelhost.tensors import Array

log = logging.getLogger("modelhost")

#: Channels that are kept for the next runs; more came of outputs that were kept for long.
_KEPT_CHANNELS: Final = 4

#: With more than so many, outputs are copied: each channel has three descriptors here, and a thread there.
_LENDING_CHANNELS: Final = 8

#: Of what runs leave, a segment has one part in so many: two are in use where there are two threads.
_SHARES: Final = 4

#: A worker that is asked for its memory has so long, and one that is to end.
_TRIM_S, _END_S = 1.0, 2.0


@dataclass(frozen=True, slots=True)
class Argument:
    """An input or output as the worker describes it."""

    name: str
    type: str
    shape: tuple[int | str | None, ...]


class CannotOpen(Exception):
    """The worker could not open the model; the text is ONNX Runtime's reason."""


class WorkerDied(Exception):
    """The worker ended while it opened the model; the text says how."""


class WorkerSession:
    """One model's session. Any thread may run it; the others' methods are the memory thread's."""

    def __init__(self, worker: Worker, *, stop_grace_s: float) -> None:
        self.worker = worker
        self._stop_grace_s = stop_grace_s
        self.kept_bytes = 0
        """What its runs may leave in memory until the next trim: half of it in the arena, half in segments."""
        self._control = worker.control
        self._sending = threading.Lock()  # of what the control connection takes
        self._numbers = itertools.count(1)
        self._free: deque[Channel] = deque()  # whose ends are atomic: channels come back on any thread
        self._all: set[Channel] = set()
        self._is_closed = False
        self._has_run = False
        self.inputs: tuple[Argument, ...] = ()
        self.outputs: tuple[Argument, ...] = ()

    # --- life ----------------------------------------------------------------------------------------------

    def open(self, file: Path, *, optimization: str, variant: Variant, cancel: CancelToken) -> None:
        """Has the worker open a model; blocks. Raises CannotOpen and WorkerDied, and the worker has gone then."""
        cancel.bind(lambda: self.worker.kill("its load was cancelled, or took too long"))
        try:
            self._control.send({"load": {"file": str(file), "optimization": optimization, "variant": variant}})
            answer = self._control.receive()
            match answer:
                case {"loaded": {"inputs": list() as inputs, "outputs": list() as outputs}}:
                    self.inputs, self.outputs = _arguments(inputs), _arguments(outputs)
                    return
                case {"failed": [str(), str(text)]}:
                    raise CannotOpen(text)
            raise BrokenWire(f"this is no face of a model: {str(answer)[:200]}")
        except BrokenWire as error:
            raise WorkerDied(f"its worker process ended while it opened the model: {self._end_of(error)}") from None
        finally:
            if not self.outputs:
                self.close()

    def close(self) -> None:
        """Ends the worker and waits until its memory is back."""
        self._is_closed = True
        self.worker.dismiss(_END_S)
        with contextlib.suppress(IndexError):
            while True:
                self._drop(self._free.pop())

    # --- running -------------------------------------------------------------------------------------------

    def run(
        self, feeds: Mapping[str, Array], names: Sequence[str], cancel: CancelToken | None, *, trim: bool
    ) -> list[tuple[str, Array]]:
        """Returns datatype and value of each output, which may lie in shared memory; blocks.

        Raises WorkerRestarting where there is no worker any more, WorkerCrashed where it ends meanwhile,
        DeadlineExceeded where it had to be ended, RefusedThere for what ONNX Runtime raises there, and ValueError
        for a value that cannot be sent.
        """
        if self.worker.has_ended:
            raise WorkerRestarting(self.worker.reason())
        self._has_run = True
        try:
            channel = self._taken()
        except BrokenWire:
            raise WorkerRestarting(self.worker.reason()) from None
        except OSError as error:
            raise _no_channel(error) from None
        if cancel is not None:
            if cancel.is_cancelled:
                self._give_back(channel)
                raise DeadlineExceeded("the run", waited_s=0.0)
            cancel.bind(_Stop(self._control, channel, channel.run_number + 1))
        try:
            lends = len(self._all) <= _LENDING_CHANNELS
            return channel.run(
                feeds,
                names,
                cancel,
                stop_grace_s=self._stop_grace_s,
                trim=trim,
                lends=lends,
                kept_bytes=self.kept_bytes // _SHARES,
            )
        except (RefusedThere, ValueError):
            self._give_back(channel)
            raise
        except OSError as error:  # no room for inputs or outputs: the channel may be in the middle of a run
            self._drop(channel)
            raise _no_channel(error) from None
        except NotTaken:
            self._drop(channel)
            raise WorkerRestarting(self.worker.reason()) from None
        except NotStopped:
            self.worker.kill(f"a run went on for {self._stop_grace_s:g} s after it was to stop")
            self._drop(channel)
            raise DeadlineExceeded("the run", waited_s=0.0) from None
        except BrokenWire as error:
            self._drop(channel)
            raise WorkerCrashed(self._end_of(error)) from None

    def _end_of(self, error: BrokenWire) -> str:
        """Ends a worker that nothing can be had of any more; returns why it did."""
        if not isinstance(error, WireEnded):
            self.worker.kill(f"it could not be understood: {error}")
        reason = self.worker.reason()
        self.worker.kill(reason)  # one that has only closed its connection
        return reason

    def _taken(self) -> Channel:
        with contextlib.suppress(IndexError):
            return self._free.pop()
        connection, theirs = Connection.pair()
        with theirs:
            try:
                channel = Channel(next(self._numbers), connection, self._give_back)
            except OSError:
                connection.close()
                raise
            self._all.add(channel)
            try:
                with self._sending:
                    self._control.send({"channel": channel.number}, (theirs.fileno(),))
            except BaseException:
                self._drop(channel)
                raise
        return channel

    def _give_back(self, channel: Channel) -> None:
        if self._is_closed or self.worker.has_ended or len(self._free) >= _KEPT_CHANNELS:
            self._drop(channel)
        else:
            self._free.append(channel)

    def _drop(self, channel: Channel) -> None:
        if channel in self._all:
            self._all.discard(channel)
            channel.close()

    # --- memory --------------------------------------------------------------------------------------------

    def shared_bytes(self) -> int:
        """Returns what the segments hold, which is no process's own. Any thread."""
        total = 0
        for channel in tuple(self._all):
            with contextlib.suppress(OSError):  # closed meanwhile
                total += channel.held_bytes()
        return total

    def trim(self) -> None:
        """Has the worker give back what runs have left, and waits for that; nothing where there was no run."""
        if not self._has_run or self.worker.has_ended:
            return
        self._has_run = False
        for _ in range(len(self._free)):  # those that are free; others are used meanwhile
            with contextlib.suppress(IndexError):
                channel = self._free.popleft()
                channel.trim()
                self._give_back(channel)
        number = next(self._numbers)
        try:
            with self._sending:
                self._control.set_timeout(_TRIM_S)
                self._control.send({"trim": number})
            while self._control.receive().get("trimmed") != number:
                pass  # the answer to one that took too long
        except TimeoutError:
            log.warning("a worker did not answer within %g s", _TRIM_S)
        except BrokenWire:
            pass  # it has ended, which others are told
        finally:
            self._control.set_timeout(PATIENT_S)


def _no_channel(error: OSError) -> Overloaded:
    """Returns what a run is told for which there is no descriptor, or no memory that can be shared."""
    text = f"no memory can be shared with the model's worker process: {error.strerror}"
    return Overloaded("shared memory", waiting=0, limit=0, text=text)


class _Stop:
    """Stops one run of a session."""

    __slots__ = ("_channel", "_control", "_number")

    def __init__(self, control: Connection, channel: Channel, number: int) -> None:
        self._control, self._channel, self._number = control, channel, number

    def __call__(self) -> None:
        self._control.send_at_once({"stop": [self._channel.number, self._number]})


def _arguments(table: Sequence[Any]) -> tuple[Argument, ...]:
    """Takes a face from a message. Raises BrokenWire."""
    found = []
    for entry in table:
        match entry:
            case [str(name), str(kind), [*shape]] if all(dim is None or isinstance(dim, int | str) for dim in shape):
                found.append(Argument(name, kind, tuple(shape)))
            case _:
                raise BrokenWire(f"this is no input or output: {str(entry)[:200]}")
    return tuple(found)
