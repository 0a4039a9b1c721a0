"""Requests as traces see them: what their headers say of one, and the parts that they were done in. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple

from modelhost.pool import ModelKey, Timing
from modelhost.pool.statistics import Trace

_PARENT: Final = "traceparent"
_STATE: Final = "tracestate"
_NAMES: Final = {name: text for text in (_PARENT, _STATE) for name in (text, text.encode())}

#: Longest headers that are looked at: 55 characters of a parent, 512 of states that everybody has to pass on.
_LONGEST: Final = 2048


def trace_of(headers: Iterable[tuple[Any, Any]]) -> Trace | None:
    """Returns what headers (names in lower case, texts or bytes) say of the trace; None where they name none, or
    more than one."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        if name in _NAMES:
            text = value.decode("latin-1") if isinstance(value, bytes) else str(value)
            found.setdefault(_NAMES[name], []).append(text[:_LONGEST])
    parents = found.get(_PARENT, [])
    if len(parents) != 1:
        return None
    return Trace(parents[0], ",".join(found.get(_STATE, ())))


class Part(NamedTuple):
    """One thing that was done for a request. Times as those of what it is part of."""

    name: str
    began_ns: int
    ended_ns: int


class Asked(NamedTuple):
    """One request that is over. Times are on the clock of time.perf_counter_ns."""

    key: ModelKey | None
    outcome: str
    arrived_ns: int
    ended_ns: int
    decoding_ns: int
    input_ns: int
    queue_ns: int
    load_ns: int
    infer_ns: int
    output_ns: int
    rows: int
    run_rows: int
    trace: Trace | None

    @classmethod
    def of(cls, timing: Timing, key: ModelKey | None, outcome: str, ended_ns: int) -> Asked:
        """Takes what its timing has now: a run that was given up goes on."""
        return cls(
            key,
            outcome,
            timing.arrived_ns,
            ended_ns,
            getattr(timing, "decoding_ns", 0),
            timing.input_ns,
            timing.queue_ns,
            getattr(timing, "load_ns", 0),
            timing.infer_ns,
            timing.output_ns,
            timing.rows,
            getattr(timing, "run_rows", 0),
            getattr(timing, "trace", None),
        )

    def parts(self) -> list[Part]:
        """Returns what was done, in order: decode, load, wait, run, encode, each where it took any time.

        What happens on other threads has its length from there, and its place from what is known here.
        """
        if not self.input_ns:
            return []
        decoded_ns = self.decoding_ns + self.input_ns
        loaded_ns = decoded_ns + self.load_ns
        if not self.infer_ns:  # it never ran
            run_ns = encoding_ns = encoded_ns = self.ended_ns
        else:
            # The queue's time counts from the arrival where anything had to be waited for before.
            run_ns = max(self.arrived_ns + self.input_ns + self.queue_ns, loaded_ns)
            encoding_ns = run_ns + self.infer_ns
            encoded_ns = encoding_ns + self.output_ns
        parts = (
            Part("decode", self.decoding_ns, decoded_ns),
            Part("load", decoded_ns, loaded_ns),
            Part("wait", loaded_ns, run_ns),
            Part("run", run_ns, encoding_ns),
            Part("encode", encoding_ns, encoded_ns),
        )
        return [
            Part(part.name, part.began_ns, min(part.ended_ns, self.ended_ns))
            for part in parts
            if part.began_ns < min(part.ended_ns, self.ended_ns)
        ]
