"""Messages between host and worker: small JSON objects on a local socket, descriptors beside them.

Both sides use it, so it imports little. The host trusts nothing that comes from a worker: what is no JSON
object is a `BrokenWire`, and descriptors are never taken from it.
"""

from __future__ import annotations

import array
import contextlib
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

#: Longest message. The kernel takes some 200 KB in one piece, and a face of a thousand tensors has 100.
MAX_BYTES: Final = 160 << 10

#: A timeout that never comes: with any at all the system does not wait, and we do.
PATIENT_S: Final = 1e6

#: Descriptors beside one message.
_MAX_DESCRIPTORS: Final = 2

Message = dict[str, Any]


class BrokenWire(Exception):
    """The other side has gone, or says what nobody understands; the text says which."""


class WireEnded(BrokenWire):
    """The other side has gone."""


class Connection:
    """One end of a local socket that keeps messages apart. One thread at a time in each direction."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        self._buffer = bytearray(MAX_BYTES)  # pages that no message has reached cost nothing
        self._view = memoryview(self._buffer)

    @classmethod
    def pair(cls) -> tuple[Connection, socket.socket]:
        """Returns our end, and the one to send away."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENT_S)
        return cls(ours), theirs

    def fileno(self) -> int:
        """Returns the descriptor, for selectors."""
        return self._socket.fileno()

    def set_timeout(self, seconds: float | None) -> None:
        """Has `receive` and `send` raise TimeoutError after so long."""
        self._socket.settimeout(seconds)

    def send(self, message: Mapping[str, Any], descriptors: Sequence[int] = ()) -> None:
        """Sends a message in one piece. Raises BrokenWire and TimeoutError."""
        data = orjson.dumps(message)
        if len(data) > MAX_BYTES:
            raise BrokenWire(f"a message of {len(data)} bytes is longer than {MAX_BYTES}")
        try:
            if descriptors:
                socket.send_fds(self._socket, [data], list(descriptors))
            else:
                self._socket.send(data)
        except TimeoutError:
            raise
        except OSError as error:
            raise WireEnded(f"the other side has gone: {error.strerror}") from None

    def send_at_once(self, message: Mapping[str, Any]) -> None:
        """Sends a message that may be lost: where the other side does not read, or has gone. Never waits.

        For a connection with a timeout, which alone keeps the system from waiting.
        """
        with contextlib.suppress(OSError):
            os.write(self._socket.fileno(), orjson.dumps(message))

    def receive(self) -> Message:
        """Waits for a message. Raises BrokenWire and TimeoutError."""
        try:
            size = self._socket.recv_into(self._buffer)
        except TimeoutError:
            raise
        except OSError as error:
            raise WireEnded(f"the other side has gone: {error.strerror}") from None
        return self._read(size)

    def receive_all(self) -> tuple[Message, list[int]]:
        """Waits for a message; returns it with the descriptors that came along, which the caller has to close."""
        room = socket.CMSG_SPACE(_MAX_DESCRIPTORS * array.array("i").itemsize)
        try:
            size, beside, _, _ = self._socket.recvmsg_into([self._buffer], room, socket.MSG_CMSG_CLOEXEC)
        except OSError as error:
            raise WireEnded(f"the other side has gone: {error.strerror}") from None
        descriptors = array.array("i")
        for level, kind, data in beside:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(data[: len(data) - len(data) % descriptors.itemsize])
        return self._read(size), list(descriptors)

    def shut(self) -> None:
        """Has both sides read an end from now on; any thread, while another one waits. Harmless when closed."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Closes this end; the other side reads an end. Harmless when closed."""
        self._socket.close()

    def _read(self, size: int) -> Message:
        if not size:
            raise WireEnded("the other side has gone")
        try:
            message = orjson.loads(self._view[:size])
        except orjson.JSONDecodeError as error:
            raise BrokenWire(f"what came is no JSON: {error}") from None
        if not isinstance(message, dict):
            raise BrokenWire(f"expected an object, got {type(message).__name__}")
        return message
