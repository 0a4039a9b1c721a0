"""One inference, whatever the protocol: from decoded tensors to an encoded answer, its memory claimed on the way."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from modelhost.api.arrivals import Arrivals
from modelhost.api.body import ByteBudget, ByteHold
from modelhost.api.buffers import BufferPool
from modelhost.api.codec import InferRequest, OutputRequest
from modelhost.api.deadlines import within
from modelhost.api.metrics import Metrics
from modelhost.errors import HeldElsewhere, HostClosed, InsufficientMemory, Overloaded, RequestTooLarge
from modelhost.host import Budgets, Host
from modelhost.pool import Kept, Lease, ModelKey, Timing
from modelhost.pool.statistics import ModelStatistics
from modelhost.repository import ModelFile
from modelhost.runtime.base import CancelToken, Inspection, LoadedModel
from modelhost.tensors import Array, TensorSpec, check_feeds, check_outputs
from modelhost.units import format_bytes

T = TypeVar("T")
A = TypeVar("A")

#: Bodies up to this, and JSON up to this, are decoded where they arrive: this much JSON takes about 2 ms.
#: Binary tensors are views on the body and cost nothing.
DECODE_INLINE_BYTES: Final = 64 << 10

#: What decoding takes is found where a body arrives up to this: looking at this much JSON takes 0.1 ms, as going to a
#: thread does; much longer where a thread decodes meanwhile, as each step of numpy's lets the interpreter go.
_FORESEE_INLINE_BYTES: Final = 256 << 10

#: Of bodies with more text one is decoded at a time: it takes some 5 ms and more. What takes less does not wait for
#: it, but shares the interpreter with it.
_ALONE_BYTES: Final = 1 << 20

#: Answers up to this are encoded and sent without a claim of their own.
ENCODE_AT_ONCE_BYTES: Final = 256 << 10

#: What decoded tensors hold for each byte of small JSON, at most: a text of two characters is some 70 bytes
#: as an element of an array.
KEPT_FACTOR: Final = 16

#: Buffers that are kept for the next large bodies hold at most one part in so many of all bodies' bytes.
_KEPT_PART: Final = 4
_MAX_KEPT_BYTES: Final = 64 << 20

#: Requests that are not all there hold at most one part in so many of that, beside it.
_PIECES_PART: Final = 4

#: Outcomes in the words of Triton's metrics; the others are "OTHER".
_REASONS: Final = {
    **dict.fromkeys(
        ("insufficient_memory", "never_fits", "run_too_large", "overloaded", "timeout", "closed", "worker_restarting"),
        "REJECTED",
    ),
    "client_gone": "CANCELED",
    **dict.fromkeys(("model_broken", "run_failed", "worker_crashed", "unrepresentable_output"), "BACKEND"),
}

_ANSWER_TAKES: Final = "the answer takes"
_FEWER_ROWS: Final = "ask for fewer rows at once, or for binary outputs"

Outputs: TypeAlias = list[tuple[OutputRequest, TensorSpec, Array]]
Face: TypeAlias = LoadedModel | Inspection


class Encoding(Protocol[A]):
    """How the outputs of one request become its answer. Pure; any thread."""

    def cost_bytes(self, outputs: Outputs) -> int:
        """Returns an upper bound for the bytes that `encode` makes."""

    def encode(self, key: ModelKey, outputs: Outputs) -> A:
        """Returns the answer of the model `key`. Raises UnrepresentableOutput."""

    def size_bytes(self, answer: A) -> int:
        """Returns what the answer holds."""


class Counted(Protocol):
    """A model whose requests are counted, such as what runs it."""

    @property
    def key(self) -> ModelKey:
        """Which it is."""

    @property
    def statistics(self) -> ModelStatistics:
        """Where they are counted."""


class _Of(NamedTuple):
    key: ModelKey
    statistics: ModelStatistics


class Elsewhere(Protocol):
    """Has another process of the host run what does not fit here."""

    async def run(
        self,
        held: HeldElsewhere,
        target: tuple[str, str | None],
        face: Face,
        decoded: InferRequest,
        hold: ByteHold,
        encoding: Encoding[A],
        *,
        deadline: float,
        timing: Timing,
    ) -> A:
        """Returns the answer that `Inference.run` is to give, of the process that `held` names."""

    def close(self) -> None:
        """Ends what is kept open."""


class Inference:
    """Leases, runs and encodes within the budget of all requests' bytes. Event-loop thread."""

    is_traced: ClassVar[bool] = False
    """Whether requests become spans: then their timing has what their headers say of a trace."""

    def __init__(self, host: Host, metrics: Metrics) -> None:
        self.host, self.metrics = host, metrics
        self.elsewhere: Elsewhere | None = None
        """None for a host that is one process."""

    def begin(self, headers: Iterable[tuple[Any, Any]]) -> Timing:
        """Returns the timing of a request that has just come, with these headers."""
        return Timing(time.perf_counter_ns())

    def open(self) -> None:
        """Takes the budgets of the host, which has opened."""
        self._statistics = self.host.pool.statistics
        decoding_bytes, siblings = self.host.budgets.decoding_bytes, self.host.siblings
        own_bytes = decoding_bytes // siblings.seats  # of what is not lent to each other
        max_waiting = self.host.settings.server.max_queue
        self.budget = ByteBudget(decoding_bytes, max_waiting=max_waiting, siblings=siblings)
        self.arrivals = Arrivals(self.budget, pieces_bytes=own_bytes // _PIECES_PART, max_waiting=max_waiting)
        self.buffers = BufferPool(min(own_bytes // _KEPT_PART, _MAX_KEPT_BYTES))
        if not siblings.is_alone:
            self.host.memory.on_change(self.budget.look_again)
        self.host.memory.add_trimmer(self.buffers.clear)
        self.host.on_budgets(self._resize)

    async def close(self) -> None:
        """Ends what was begun by `open`."""
        if self.elsewhere is not None:
            self.elsewhere.close()

    def _resize(self, budgets: Budgets) -> None:
        self.budget.resize(budgets.decoding_bytes)
        self.arrivals.pieces.resize(budgets.decoding_bytes // self.host.siblings.seats // _PIECES_PART)

    @property
    def max_decoded_bytes(self) -> int:
        """What decoding one request may take at the most."""
        return self.budget.limit_bytes

    def refuse_exhausted(self) -> None:
        """Refuses work while usage is within `memory.min_free` of the limit: it might be what is killed."""
        memory = self.host.memory
        if not memory.is_exhausted:
            return
        info = memory.memory_info()
        free_bytes = info.limit_bytes - info.usage_bytes
        if free_bytes < info.min_free_bytes:
            raise InsufficientMemory(
                f"{format_bytes(free_bytes)} are left of {format_bytes(info.limit_bytes)}, less than "
                f"memory.min_free ({format_bytes(info.min_free_bytes)})",
                needed_bytes=info.min_free_bytes,
                available_bytes=max(0, free_bytes),
            )

    async def decode(
        self,
        work: Callable[[], T],
        hold: ByteHold,
        *,
        cost_bytes: Callable[[], int],
        body_bytes: int,
        text_bytes: int,
        slow_bytes: int,
    ) -> T:
        """Returns what `work` decodes, its memory claimed first: on a thread where `slow_bytes` are many.

        `text_bytes` of the body are JSON, `slow_bytes` take time to decode. Small bodies claim a multiple
        of their JSON, others `cost_bytes()`, which looks at all of it, on a thread where that takes long.
        """
        if body_bytes <= DECODE_INLINE_BYTES:
            await hold.grow(KEPT_FACTOR * text_bytes)  # one is decoded at a time: this much stays of it, at most
            return work()
        is_long = slow_bytes > _FORESEE_INLINE_BYTES
        await hold.grow(await self.on_thread(cost_bytes, hold) if is_long else cost_bytes())
        if slow_bytes <= DECODE_INLINE_BYTES:
            return work()
        return await self.on_thread(work, hold, holds_interpreter=slow_bytes > _ALONE_BYTES)

    async def run(
        self,
        target: tuple[str, str | None],
        face: Face,
        decoded: InferRequest,
        hold: ByteHold,
        encoding: Encoding[A],
        *,
        deadline: float,
        timing: Timing,
    ) -> A:
        """Returns the answer, loading the model where it is not loaded; a large one is claimed in `hold`.

        Where the model does not fit, and another process of the host holds it, that one runs it.
        `target` is the name and the version that were asked for, `face` what the request was decoded for,
        `deadline` is on the event loop's clock. Raises what Pool.acquire and Lease.run_checked raise,
        InvalidRequest and InvalidTensor where the model has another face now, and UnrepresentableOutput,
        RequestTooLarge and Overloaded for the answer.
        """
        try:
            return await self.run_here(target, face, decoded, hold, encoding, deadline=deadline, timing=timing)
        except HeldElsewhere as error:
            if self.elsewhere is None:
                raise
            held = error.with_traceback(None)
        return await self.elsewhere.run(held, target, face, decoded, hold, encoding, deadline=deadline, timing=timing)

    async def run_here(
        self,
        target: tuple[str, str | None],
        face: Face,
        decoded: InferRequest,
        hold: ByteHold,
        encoding: Encoding[A],
        *,
        deadline: float,
        timing: Timing,
    ) -> A:
        """The same in this process, or not at all; raises HeldElsewhere too."""
        lease = await self.host.pool.acquire_known(*target, deadline=deadline)
        hold.begin_use()  # the run may outlive the request, and has its tensors
        lease.when_over(hold.end_use)
        try:
            fit(decoded, face, lease)
            # Loading and waiting until here is the queue's, too.
            timing.queue_ns = time.perf_counter_ns() - timing.arrived_ns - timing.input_ns
            timing.load_ns = lease.waited_ns
            return await self._run(lease, decoded, hold, encoding, deadline, timing)
        finally:
            lease.end()

    async def _run(
        self,
        lease: Lease,
        decoded: InferRequest,
        hold: ByteHold,
        encoding: Encoding[A],
        deadline: float,
        timing: Timing,
    ) -> A:
        """Runs and encodes on an inference thread.

        Small answers are encoded there and then, their outputs never leave the thread. The memory
        for a large one is claimed first, while its outputs wait where the run has left them.
        """
        key, specs = lease.key, lease.outputs
        finish = self.finisher(key, specs, decoded, encoding)
        done = await lease.run_checked(
            decoded.feeds, [out.name for out in decoded.outputs], finish, deadline=deadline, timing=timing
        )
        if not isinstance(done, Kept):
            return self.admit(done, hold, encoding)
        with done:
            # The line for the answer's memory may wait for requests that wait for this one's model and
            # for its body's memory: both are given up first.
            lease.end()
            decoded.feeds.clear()
            return await self.encode_kept(done, key, hold, encoding, timing, deadline)

    async def encode_kept(
        self,
        done: Kept[tuple[Outputs, int]],
        key: ModelKey,
        hold: ByteHold,
        encoding: Encoding[A],
        timing: Timing,
        deadline: float,
    ) -> A:
        """Returns the answer of outputs that wait where the run has left them, within their scope.

        What `hold` has is given back, and the answer's memory claimed instead. Raises what ByteHold.grow
        raises, UnrepresentableOutput and DeadlineExceeded.
        """
        results, cost_bytes = done.value
        hold.model = str(key)
        hold.shrink(0)
        async with within(
            "waiting for the answer's memory, or encoding it,", started=arrived(timing), deadline=deadline
        ):
            await hold.grow(cost_bytes, is_last_step=True, what=_ANSWER_TAKES, advice=_FEWER_ROWS)
            began_ns = time.perf_counter_ns()
            answer = await self.on_thread(lambda: encoding.encode(key, results), hold, kept=done)
        timing.output_ns += time.perf_counter_ns() - began_ns
        results.clear()
        hold.shrink(encoding.size_bytes(answer))
        return answer

    def finisher(
        self, key: ModelKey, specs: Any, decoded: InferRequest, encoding: Encoding[A]
    ) -> Callable[[list[Array]], A | Kept[tuple[Outputs, int]]]:
        """Returns what makes the answer of a run's outputs, on its thread; of large ones something to wait with."""
        budget, asked = self.budget, decoded.outputs

        def finish(arrays: list[Array]) -> A | Kept[tuple[Outputs, int]]:
            results = [(out, specs[out.name], value) for out, value in zip(asked, arrays, strict=True)]
            cost_bytes = encoding.cost_bytes(results)
            if cost_bytes <= ENCODE_AT_ONCE_BYTES:
                return encoding.encode(key, results)
            if not any(array.dtype.kind == "O" for array in arrays):
                return Kept((results, cost_bytes), sum(array.nbytes for array in arrays))
            # Text lies on the heap, outside the arena's ceiling: it must not wait in line.
            if cost_bytes > budget.limit_bytes:
                raise RequestTooLarge(
                    _ANSWER_TAKES, size_bytes=cost_bytes, limit_bytes=budget.limit_bytes, advice=_FEWER_ROWS
                )
            if cost_bytes > budget.free_bytes:
                raise _no_room(cost_bytes, budget.free_bytes)
            return encoding.encode(key, results)

        return finish

    def admit(self, answer: A, hold: ByteHold, encoding: Encoding[A]) -> A:
        """Claims an answer that is there already, where it is large. Raises Overloaded."""
        size_bytes = encoding.size_bytes(answer)
        if size_bytes > ENCODE_AT_ONCE_BYTES and not hold.try_grow(size_bytes):
            raise _no_room(size_bytes, self.budget.free_bytes)
        return answer

    async def on_thread(
        self,
        work: Callable[[], T],
        hold: ByteHold,
        *,
        kept: Kept[Any] | None = None,
        holds_interpreter: bool = False,
    ) -> T:
        """Works on an inference thread, in the turn of the model that `hold` is for.

        What is held, and the claim of `kept` outputs, last until the work is over, whoever still waits for it.
        `holds_interpreter`: it is Python that hardly ever lets the interpreter go.
        """
        cancel = CancelToken()
        # The future has no name here: it has the error, whose traceback has this frame.
        return await self.host.pool.runner.result(
            self._submit(work, cancel, hold, kept, holds_interpreter), cancel=cancel
        )

    def _submit(
        self,
        work: Callable[[], T],
        cancel: CancelToken,
        hold: ByteHold,
        kept: Kept[Any] | None,
        holds_interpreter: bool,
    ) -> asyncio.Future[T]:
        def ended() -> None:
            hold.end_use()
            if kept is not None:
                kept.end_use()

        runner = self.host.pool.runner
        lane = runner.lane(hold.model)
        job = runner.submit(work, cancel=cancel, on_end=ended, lane=lane, holds_interpreter=holds_interpreter)
        hold.begin_use()
        if kept is not None:
            kept.begin_use()
        return job

    def note(self, outcome: str, timing: Timing, file: ModelFile | None) -> None:
        """Counts a request that is over; `outcome` is `ok` or the error's code, `file` the model it was for."""
        if outcome == "ok" and file is not None:
            key = ModelKey.of(file)
            self.note_success(timing, _Of(key, self._statistics.of(key)))
            return
        took_ns = time.perf_counter_ns() - timing.arrived_ns
        self.metrics.observe(outcome, took_ns * 1e-9)
        reason = _REASONS.get(outcome, "OTHER")
        self._statistics.note_failure(None if file is None else ModelKey.of(file), took_ns, reason)

    def note_success(self, timing: Timing, of: Counted) -> None:
        """Counts a request that was answered."""
        self._statistics.note_success(of.statistics, timing, time.perf_counter_ns() - timing.arrived_ns)

    def closed(self) -> HostClosed:
        """Returns the refusal of a host that shuts down."""
        return HostClosed("the host is shutting down")


def arrived(timing: Timing) -> float:
    """Returns when a request came, on the event loop's clock."""
    return asyncio.get_running_loop().time() - (time.perf_counter_ns() - timing.arrived_ns) * 1e-9


def _no_room(cost_bytes: int, free_bytes: int) -> Overloaded:
    text = f"the answer takes {format_bytes(cost_bytes)}, {format_bytes(free_bytes)} are free for answers now"
    return Overloaded("answers", waiting=0, limit=0, text=text)


def fit(decoded: InferRequest, face: Face, lease: Lease) -> None:
    """Has a request that was decoded for `face` ask what a lease is on, whose files may be newer.

    So that no answer is of both. Raises InvalidRequest or InvalidTensor where it does not fit that.
    """
    inputs, outputs = lease.inputs, lease.outputs
    if inputs is face.inputs or (inputs == face.inputs and outputs == face.outputs):
        return
    check_feeds(inputs, decoded.feeds)
    asked = [out.name for out in decoded.outputs]
    if asked == list(face.outputs):  # all that there were, and so all that there are
        decoded.outputs = tuple([OutputRequest(name, decoded.outputs[0].binary) for name in outputs])
    else:
        check_outputs(outputs, asked)


def kept_bytes(decoded: InferRequest, body_bytes: int) -> int:
    """Returns what decoded tensors hold: numbers their arrays, or the body that those are views on."""
    kept = 0
    for array in decoded.feeds.values():
        if array.dtype.kind == "O":
            kept += array.nbytes + sum(sys.getsizeof(text) for text in array.ravel().tolist())
        else:
            kept += array.nbytes if array.flags.owndata else body_bytes
    return kept
