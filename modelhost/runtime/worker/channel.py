"""Where runs cross to a worker, in the host: a socket for each run in progress, with shared memory beside it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from modelhost.runtime.base import CancelToken
from modelhost.runtime.worker.packing import Parcel, read
from modelhost.runtime.worker.segment import Segment
from modelhost.runtime.worker.wire import BrokenWire, Connection, Message
from modelhost.tensors import Array

#: Outputs of no more are copied, and the channel is free at once.
_COPIED_BYTES: Final = 16 << 10

#: Outputs of one run, in a segment: more is a worker's mistake, or worse.
_MOST_BYTES: Final = 1 << 40


class RefusedThere(Exception):
    """ONNX Runtime has raised in the worker; the text is its reason."""


class InvalidArgument(RefusedThere):
    """What ONNX Runtime calls so: the input is wrong."""


class NotTaken(Exception):
    """The worker had gone before it was asked to run."""


class NotStopped(Exception):
    """A run goes on although it was stopped."""


class Channel:
    """One run at a time. The thread that runs, but for `stop`; what it returns may be dropped on any."""

    def __init__(self, number: int, connection: Connection, free: Callable[[Channel], None]) -> None:
        self.number = number
        self.run_number = 0
        self._connection, self._free = connection, free
        self._segment = Segment.create(0)
        self._is_new = True  # the worker does not have the segment yet

    def run(
        self,
        feeds: Mapping[str, Array],
        names: Sequence[str],
        cancel: CancelToken | None,
        *,
        stop_grace_s: float,
        trim: bool,
        lends: bool,
        kept_bytes: int,
    ) -> list[tuple[str, Array]]:
        """Returns datatype and value of each output; is free when those have gone that lie in its segment.

        With `trim` the worker's arena is shrunk before the answer; unless it `lends` its segment all outputs are
        copies. Of the segment `kept_bytes` stay in memory afterwards.

        Raises RefusedThere and ValueError, after which it is free, and NotTaken, NotStopped, BrokenWire and OSError,
        after which it is of no use.
        """
        parcel = Parcel.of(list(feeds.values()))
        self._make_room(parcel.size_bytes)
        places = parcel.write(self._segment.bytes)
        del parcel
        self.run_number += 1
        job = {"feeds": list(zip(feeds, places, strict=True)), "outputs": list(names), "trim": trim}
        try:
            self._send({"run": self.run_number, **job})
        except BrokenWire as error:
            raise NotTaken(str(error)) from None
        answer = self._answer(cancel, stop_grace_s)
        if (room := answer.get("room")) is not None:
            if type(room) is not int or not 0 < room < _MOST_BYTES:
                raise BrokenWire(f"there is no room of {room} bytes")
            self._make_room(room)
            self._send({})
            answer = self._answer(cancel, stop_grace_s)
        match answer:
            case {"done": [*places]} if len(places) == len(names):
                return self._outputs(places, _COPIED_BYTES if lends else _MOST_BYTES, kept_bytes)
            case {"failed": [str(kind), str(text)]}:
                raise (InvalidArgument if kind == "InvalidArgument" else RefusedThere)(text)
        raise BrokenWire(f"this is no answer to a run with {len(names)} outputs: {str(answer)[:200]}")

    def held_bytes(self) -> int:
        """Returns what its segment holds."""
        return self._segment.held_bytes()

    def trim(self) -> None:
        """Gives back what the segment holds, of a channel that is free."""
        self._segment.give_back()

    def close(self) -> None:
        """Ends it; the worker's thread ends too."""
        self._connection.close()
        self._segment.close()

    def _make_room(self, size_bytes: int) -> None:
        if size_bytes > self._segment.size_bytes:
            larger = Segment.create(size_bytes)
            self._segment.close()
            self._segment, self._is_new = larger, True

    def _send(self, message: Message) -> None:
        if self._is_new:
            self._connection.send(message | {"segment": self._segment.size_bytes}, (self._segment.descriptor,))
            self._is_new = False
        else:
            self._connection.send(message)

    def _answer(self, cancel: CancelToken | None, stop_grace_s: float) -> Message:
        """Waits for an answer, for a run that was stopped not for long."""
        # Looked at that often: so a run that was stopped has its grace once, or up to twice.
        self._connection.set_timeout(stop_grace_s)
        stopped_at: float | None = None
        while True:
            try:
                return self._connection.receive()
            except TimeoutError:
                if cancel is None or not cancel.is_cancelled:
                    continue
                now = time.monotonic()
                if stopped_at is not None and now - stopped_at >= stop_grace_s / 2:
                    raise NotStopped from None
                stopped_at = stopped_at or now

    def _outputs(self, places: Sequence[Any], copied_bytes: int, kept_bytes: int) -> list[tuple[str, Array]]:
        loan = _Loan(self, self._segment, self._free, kept_bytes)
        memory = np.asarray(loan)
        found = [read(place, memory) for place in places]
        if sum([array.nbytes for _, array in found]) <= copied_bytes:
            return [(datatype, array.copy()) for datatype, array in found]
        return found


class _Loan:
    """The memory of a segment, as numpy asks for it: arrays on it keep this alive, and its end frees the channel."""

    def __init__(self, channel: Channel, segment: Segment, free: Callable[[Channel], None], kept_bytes: int) -> None:
        self._channel, self._segment, self._free, self._kept_bytes = channel, segment, free, kept_bytes
        self.__array_interface__ = {
            "version": 3,
            "typestr": "|u1",
            "shape": (segment.size_bytes,),
            "data": (segment.address, False),
        }

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the interpreter's end there may be nothing to call
            self._segment.give_back(self._kept_bytes)
            self._free(self._channel)
