"""The worker: one session, run for the host. What a fork of the template does until the host has gone.

The main thread reads what the host wants of the process, each channel's thread runs. When the host ends, however
that is, the main thread reads an end and the process is gone, in the middle of a run too.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from typing import Any, Final

import onnxruntime as ort

from modelhost.runtime.building_steps import trim_heap
from modelhost.runtime.engine import PROVIDERS, Arena, runnable, session_options
from modelhost.runtime.structured import StructuredSession
from modelhost.runtime.worker.packing import Parcel, read
from modelhost.runtime.worker.segment import Segment
from modelhost.runtime.worker.wire import BrokenWire, Connection, Message

#: Of an error's text: it goes into a log and an answer.
_TEXT_CHARS: Final = 4000

_Run = Callable[[list[str], dict[str, Any], Any], list[Any]]


def serve(control: Connection, arena: Arena, *, ceiling_bytes: int, intra_op_threads: int) -> None:
    """Does what the host says, until it has gone."""
    worker = _Worker(arena, ceiling_bytes, intra_op_threads)
    acts: dict[str, Callable[[Any, list[int]], Message | None]] = {
        "load": worker.load,
        "channel": worker.open_channel,
        "stop": worker.stop,
        "trim": worker.trim,
    }
    with contextlib.suppress(BrokenWire):
        while True:
            message, descriptors = control.receive_all()
            for what, given in message.items():
                answer = acts[what](given, descriptors)
                if answer is not None:
                    control.send(answer)


class _Worker:
    """The session and its channels. Methods are the main thread's."""

    def __init__(self, arena: Arena, ceiling_bytes: int, intra_op_threads: int) -> None:
        self._arena, self._ceiling_bytes, self._threads = arena, ceiling_bytes, intra_op_threads
        self._session: Any = None
        self._structured: frozenset[str] = frozenset()
        self._channels: dict[int, _Channel] = {}

    def load(self, job: Message, _: list[int]) -> Message:
        """Opens the model; answers with its face, or with ONNX Runtime's reason."""
        options = session_options(job["optimization"], job["variant"], intra_op_threads=self._threads)
        try:
            session = ort.InferenceSession(job["file"], options, providers=PROVIDERS)
            face = {"inputs": _arguments(session.get_inputs()), "outputs": _arguments(session.get_outputs())}
            self._structured = frozenset(name for name, kind, _ in face["outputs"] if not kind.startswith("tensor("))
            self._session = StructuredSession(runnable(session), self._structured)
        except Exception as error:
            return {"failed": _words(error)}
        trim_heap()
        return {"loaded": face}

    def open_channel(self, number: int, descriptors: list[int]) -> None:
        """Begins to serve runs on the socket that came along."""
        connection = Connection(socket.socket(fileno=descriptors[0]))
        channel = self._channels[number] = _Channel(connection, self._run, self._arena.trim, self._structured)
        threading.Thread(target=self._serve, args=(number, channel), daemon=True).start()

    def _serve(self, number: int, channel: _Channel) -> None:
        try:
            channel.serve()
        finally:
            del self._channels[number]

    def stop(self, run: list[int], _: list[int]) -> None:
        """Has a run end at its next node; one that is over is left alone."""
        channel = self._channels.get(run[0])
        if channel is not None:
            channel.stop(run[1])

    def trim(self, number: int, _: list[int]) -> Message:
        """Gives back what runs have left."""
        self._arena.trim()
        trim_heap()
        return {"trimmed": number}

    def _run(self, names: list[str], feeds: dict[str, Any], options: Any) -> list[Any]:
        return self._arena.run_in_pieces(self._session, names, feeds, options, self._ceiling_bytes)


class _Channel:
    """Runs one request after another. A thread of its own, but for `stop`."""

    def __init__(self, connection: Connection, run: _Run, trim: Callable[[], None], structured: frozenset[str]) -> None:
        self._connection, self._run, self._trim, self._structured = connection, run, trim, structured
        self._segment: Segment | None = None
        self._lock = threading.Lock()
        self._number = 0  # of the run in progress, or of the last one
        self._options: Any = None
        self._stopped = 0  # the last run that was stopped before it had begun

    def serve(self) -> None:
        """Serves until the host closes its end."""
        with contextlib.suppress(BrokenWire):
            while True:
                message = self._receive()
                answer = self._answered(message)
                if message["trim"]:
                    self._trim()
                self._connection.send(answer)

    def stop(self, number: int) -> None:
        """Stops a run, which may not have begun."""
        with self._lock:
            self._stopped = number
            if self._number == number and self._options is not None:
                self._options.terminate = True

    def _receive(self) -> Message:
        message, descriptors = self._connection.receive_all()
        if descriptors:
            if self._segment is not None:
                self._segment.close()
            self._segment = Segment(descriptors[0], message["segment"])
        return message

    def _answered(self, message: Message) -> Message:
        options = ort.RunOptions()
        with self._lock:
            self._number, self._options = message["run"], options
            options.terminate = self._stopped == self._number
        try:
            assert self._segment is not None
            feeds = {name: read(place, self._segment.bytes)[1] for name, place in message["feeds"]}
            results = self._run(message["outputs"], feeds, options)
            parcel = Parcel.of(results, [name in self._structured for name in message["outputs"]])
        except Exception as error:
            return {"failed": _words(error)}
        finally:
            with self._lock:
                self._options = None
        del results
        return self._delivered(parcel)

    def _delivered(self, parcel: Parcel) -> Message:
        """Writes the outputs where the inputs were; asks for room where there is too little."""
        assert self._segment is not None
        if parcel.size_bytes > self._segment.size_bytes:
            self._connection.send({"room": parcel.size_bytes})
            self._receive()
        return {"done": parcel.write(self._segment.bytes)}


def _arguments(arguments: Any) -> list[tuple[str, str, list[int | str | None]]]:
    return [(arg.name, arg.type, list(arg.shape or ())) for arg in arguments]


def _words(error: Exception) -> list[str]:
    """Returns an error as two texts: its kind, and its words."""
    kind = "InvalidArgument" if isinstance(error, ValueError | TypeError) else type(error).__name__
    return [kind, str(error)[:_TEXT_CHARS]]
