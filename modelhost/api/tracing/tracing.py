"""From requests that are over to spans: a bounded queue, and a thread that makes them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, Protocol

from modelhost.api.inference import Counted, Inference
from modelhost.api.metrics import Metrics
from modelhost.api.traces import Asked, trace_of
from modelhost.api.tracing.spans import Spans, batching, unix_offset_ns
from modelhost.host import Host
from modelhost.pool import ModelKey, Timing
from modelhost.repository import ModelFile

log = logging.getLogger("modelhost")

#: Spans are made so often: who adds one wakes nobody for it.
_EVERY_S: Final = 0.2

#: What is left at the end has so long.
_PATIENCE_S: Final = 2.0


class Maker(Protocol):
    """What makes spans."""

    def add(self, asked: Asked, to_unix_ns: int) -> None:
        """Makes those of one request."""

    def close(self) -> None:
        """Exports what is left; blocks."""


class Tracing:
    """Requests that wait to become spans. `add` is the event loop's; figures may be read from any thread."""

    def __init__(self, max_waiting: int, make: Callable[[], Maker] = lambda: Spans(batching())) -> None:
        self._max_waiting = max_waiting
        self._make_maker = make
        self._maker: Maker | None = None
        self._waiting: deque[Asked] = deque()
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._on_end: Callable[[], None] = lambda: None
        self.traced = 0
        """Requests that became spans, or that were looked at and not sampled."""
        self.dropped = 0
        """Requests that did not, as too many waited."""

    def start(self) -> None:
        """Begins, with the thread of the exporter: not before a host's processes are forked."""
        self._maker = self._make_maker()
        self._thread = threading.Thread(target=self._serve, name="modelhost-traces", daemon=True)
        self._thread.start()

    def add(self, asked: Asked) -> None:
        """Takes a request that is over."""
        if len(self._waiting) >= self._max_waiting:
            self.dropped += 1
        else:
            self._waiting.append(asked)

    async def stop(self) -> None:
        """Has made and exported what is left, as far as that is done within two seconds."""
        if self._thread is None:
            return
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has not waited for it
                loop.call_soon_threadsafe(ended.set)

        self._on_end = tell
        self._closing.set()
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await ended.wait()
        except TimeoutError:
            log.warning("the host ends, and not all traces were exported")

    def _serve(self) -> None:
        try:
            while not self._closing.wait(_EVERY_S):
                self._make()
            self._make()
            if self._maker is not None:
                self._maker.close()
        except Exception:
            log.exception("requests are no longer traced")
        finally:
            self._on_end()

    def _make(self) -> None:
        to_unix_ns, maker = unix_offset_ns(), self._maker
        while self._waiting and maker is not None:
            maker.add(self._waiting.popleft(), to_unix_ns)
            self.traced += 1


class TracedInference(Inference):
    """Inference whose requests become spans when they are over."""

    is_traced: ClassVar[bool] = True

    def __init__(self, host: Host, metrics: Metrics, tracing: Tracing) -> None:
        super().__init__(host, metrics)
        self._tracing = tracing

    def open(self) -> None:
        """See Inference."""
        super().open()
        self._tracing.start()

    async def close(self) -> None:
        """See Inference."""
        await super().close()
        await self._tracing.stop()

    def begin(self, headers: Iterable[tuple[Any, Any]]) -> Timing:
        """See Inference."""
        timing = Timing(time.perf_counter_ns())
        timing.trace = trace_of(headers)
        return timing

    def note(self, outcome: str, timing: Timing, file: ModelFile | None) -> None:
        """See Inference."""
        super().note(outcome, timing, file)
        if outcome != "ok" or file is None:  # the others are noted below
            key = None if file is None else ModelKey.of(file)
            self._tracing.add(Asked.of(timing, key, outcome, time.perf_counter_ns()))

    def note_success(self, timing: Timing, of: Counted) -> None:
        """See Inference."""
        super().note_success(timing, of)
        self._tracing.add(Asked.of(timing, of.key, "ok", time.perf_counter_ns()))
