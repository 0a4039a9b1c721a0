"""The seeds: requests of every kind, one in a file, in `tests/corpus`.

`framed/*.http` are requests whose length is what it says, so that each has exactly one answer; what is in them may be
as wrong as it likes. `raw/*.bin` are bytes that are no request, several, or half of one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from benchmarks.places import ROOT

DIRECTORY: Final = ROOT / "tests" / "corpus"

#: Seeds of what takes the host milliseconds, and of what everybody asks: how often the one beside the other.
_SELDOM: Final = ("get_docs", "get_openapi", "get_metrics", "get_memory", "cleanup", "load", "unload", "index")
_USUAL_WEIGHT, _SELDOM_WEIGHT = 1.0, 0.05


@dataclass(frozen=True, slots=True)
class Message:
    """A request whose framing is right, in parts. Names and values of headers as they are."""

    method: bytes
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    chunks: tuple[int, ...] = ()
    """Where the body is cut, if it is sent in chunks."""

    def rendered(self) -> bytes:
        """Returns the bytes, with the length that they have."""
        head = [self.method + b" " + self.target + b" HTTP/1.1"]
        head += [name + b": " + value for name, value in self.headers]
        if self.chunks:
            head.append(b"Transfer-Encoding: chunked")
        elif self.body or self.method in (b"POST", b"PUT", b"PATCH"):
            head.append(b"Content-Length: %d" % len(self.body))
        return b"\r\n".join([*head, b"", b""]) + (self._chunked() if self.chunks else self.body)

    def _chunked(self) -> bytes:
        cuts = sorted({0, len(self.body), *(cut % (len(self.body) + 1) for cut in self.chunks)})
        pieces = [self.body[begin:end] for begin, end in pairwise(cuts)]
        return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Corpus:
    """All seeds; `weights` go with the framed ones."""

    framed: tuple[Message, ...]
    weights: tuple[float, ...]
    raw: tuple[bytes, ...]


def read(directory: Path = DIRECTORY) -> Corpus:
    """Reads the seeds. Raises FileNotFoundError where there are none."""
    files = sorted((directory / "framed").glob("*.http"))
    raw = sorted((directory / "raw").glob("*.bin"))
    if not files or not raw:
        raise FileNotFoundError(f"{directory} has no seeds")
    weights = [_SELDOM_WEIGHT if any(part in file.stem for part in _SELDOM) else _USUAL_WEIGHT for file in files]
    return Corpus(
        tuple(parsed(file.read_bytes()) for file in files), tuple(weights), tuple(file.read_bytes() for file in raw)
    )


def parsed(data: bytes) -> Message:
    """Takes a request apart that states its length, or has no body. Raises ValueError."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    method, target, _ = first.split(b" ", 2)
    headers = []
    for line in lines:
        name, _, value = line.partition(b":")
        headers.append((name, value.strip()))
    lengths = [int(value) for name, value in headers if name.lower() == b"content-length"]
    if (lengths or [0]) != [len(body)]:
        raise ValueError(f"{first!r}: {len(body)} bytes of body where {lengths} are stated")
    return without_length(Message(method, target, tuple(headers), body))


def without_length(message: Message) -> Message:
    """Leaves out what `rendered` adds."""
    framing = (b"content-length", b"transfer-encoding")
    return replace(message, headers=tuple(one for one in message.headers if one[0].lower() not in framing))
