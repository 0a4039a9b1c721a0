"""The short cut: requests for a loaded model, where nothing has to be waited for, without a coroutine.

What has to wait (for a load, for memory, for a slow decoding) takes the way that requests over ASGI take.
Both are the same steps in the same order, with the same errors.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, Final

from starlette.requests import ClientDisconnect

from modelhost.api import request_ids
from modelhost.api.answers import Answer
from modelhost.api.body import ByteHold
from modelhost.api.codec import (
    Body,
    EncodedResponse,
    InferRequest,
    QuickCodec,
    decode_request,
    foresee,
    parse_header_length,
)
from modelhost.api.deadlines import Expiries
from modelhost.api.disconnect import GoneWatch
from modelhost.api.errors import respond_unexpected
from modelhost.api.exchange import Exchange
from modelhost.api.heads import path_of
from modelhost.api.infer import Compressed, InferRoutes, QuickEncoding
from modelhost.api.inference import (
    DECODE_INLINE_BYTES,
    ENCODE_AT_ONCE_BYTES,
    KEPT_FACTOR,
    Encoding,
    Outputs,
    arrived,
    kept_bytes,
)
from modelhost.errors import ActivationsFull, DeadlineExceeded, ModelHostError, RunTooLarge
from modelhost.host import Budgets
from modelhost.pool import Kept, Lease, ModelKey
from modelhost.pool.batch import Run
from modelhost.pool.runs import ModelRuns
from modelhost.pool.slot import Slot
from modelhost.repository import ModelFile
from modelhost.runtime.base import CancelToken
from modelhost.tensors import Array

#: No JSON takes more bytes for each of its own while it is decoded (`json_cost_bytes` of brackets).
_WORST_FACTOR: Final = 256

#: Outputs up to this are encoded without asking what that takes.
_SMALL_OUTPUT_BYTES: Final = 16 << 10

#: JSON of FP32 is bounded by so many times its bytes: outputs of more wait for their claim, as others do.
_JSON_FACTOR: Final = 8


class ShortCut:
    """Answers exchanges. Event-loop thread."""

    def __init__(self, routes: InferRoutes) -> None:
        self._routes = routes
        self.inference = routes.inference
        self.host = self.inference.host
        self._on_threads: Expiries[_OnThread] = Expiries()
        self.receiving: set[Exchange] = set()
        """Those whose bodies are still coming, after the first segment of them."""
        self.is_closed = False
        """Whether the host has shut down, and connections end at once."""

    def begin(self, exchange: Exchange) -> None:
        """Answers a request whose body is there, now or later. Raises nothing."""
        try:
            if not self._quickly(exchange):
                self._thoroughly(exchange)
        except ModelHostError as error:
            self._fail(exchange, error, self.host.pool.known(exchange.target))
        except Exception as error:
            self._fail_unexpected(exchange, error)

    def open(self) -> None:
        """Takes the budgets of the host, which has opened."""
        self.max_request_bytes = self.host.budgets.request_bytes
        """Largest body that is accepted; longer ones are for the application to refuse."""
        self.host.on_budgets(self._take)

    def _take(self, budgets: Budgets) -> None:
        self.max_request_bytes = budgets.request_bytes

    def refuse(self, exchange: Exchange, error: ModelHostError) -> None:
        """Answers a request, whose body never came, with an error; it may still come, so the connection ends."""
        self.receiving.discard(exchange)
        exchange.keep_alive = False
        self._fail(exchange, error, None)

    def close(self) -> None:
        """Answers everybody whose run or body is still in progress, and stops it: the host shuts down."""
        self.is_closed = True
        for exchange in tuple(self.receiving):
            exchange.refused(self.inference.closed())
        for running in self._on_threads:
            running.give_up(self.inference.closed())
        self._on_threads.close()

    # --- quickly -------------------------------------------------------------------------------------

    def _quickly(self, exchange: Exchange) -> bool:
        """Answers, or starts the run; returns False where something has to be waited for first."""
        pool = self.host.pool
        slot = None if self.host.memory.is_exhausted else pool.resident(exchange.target)
        if slot is None or slot.runs is None:
            return False
        runs, timing = slot.runs, exchange.timing
        began_ns = time.perf_counter_ns()
        decoded = self._decode(exchange, runs)
        if decoded is None:
            return False
        timing.decoding_ns, timing.input_ns = began_ns, time.perf_counter_ns() - began_ns
        if decoded.timeout_s is not None:
            _check_time(exchange, decoded.timeout_s)
        names = [out.name for out in decoded.outputs]
        try:
            arrays = runs.try_in_place(decoded.feeds, names, timing)
        except (ActivationsFull, RunTooLarge):
            return False  # which waits for the whole arena, and knows what to say
        encoding = self._encoding(exchange, runs, decoded)
        if arrays is None:
            return self._on_thread(exchange, slot, runs, decoded, names, encoding)
        began_ns = time.perf_counter_ns()
        encoded = self._encode(exchange, runs, decoded, encoding, arrays)
        timing.output_ns = time.perf_counter_ns() - began_ns
        pool.touch(slot)
        self.inference.note_success(timing, runs)
        self._send(exchange, encoded)
        return True

    def _encoding(self, exchange: Exchange, runs: ModelRuns, decoded: InferRequest) -> Encoding[EncodedResponse]:
        encoding = QuickEncoding(decoded, runs.attached)
        accept_encoding = exchange.head.accept_encoding
        if accept_encoding and self.host.settings.server.compress_answers:
            return Compressed(encoding, accept_encoding)
        return encoding

    def _encode(
        self,
        exchange: Exchange,
        runs: ModelRuns,
        decoded: InferRequest,
        encoding: Encoding[EncodedResponse],
        arrays: list[Array],
    ) -> EncodedResponse:
        """Returns the answer of a run in place, whose outputs are small unless the values make them large."""
        finished = self._finish(runs, decoded, encoding, arrays)
        if isinstance(finished, Kept):
            finished = encoding.encode(runs.key, finished.value[0])
        return self.inference.admit(finished, exchange.hold, encoding)

    def _finish(
        self,
        runs: ModelRuns,
        decoded: InferRequest,
        encoding: Encoding[EncodedResponse],
        arrays: list[Array],
    ) -> EncodedResponse | Kept[tuple[Outputs, int]]:
        """Returns what `Inference.finisher` makes of a run's outputs, a small one's in fewer steps; any thread."""
        if len(arrays) == 1 and arrays[0].nbytes <= _SMALL_OUTPUT_BYTES and type(encoding) is QuickEncoding:
            encoded = encoding.encode_quickly(arrays)
            if encoded is not None:
                return encoded
        return self.inference.finisher(runs.key, runs.model.outputs, decoded, encoding)(arrays)

    def _decode(self, exchange: Exchange, runs: ModelRuns) -> InferRequest | None:
        """Decodes where that is quick and its memory is free, which is claimed only beyond small ones."""
        body, budget, header_length = exchange.body(), self.inference.budget, exchange.head.header_length
        size_bytes = len(body)
        length = None if header_length is None else parse_header_length(header_length, size_bytes)
        text_bytes = size_bytes if length is None else length
        model = runs.model
        if budget.waiting:
            return None
        foreseen = None
        if size_bytes <= DECODE_INLINE_BYTES:
            if KEPT_FACTOR * text_bytes + size_bytes > budget.free_bytes:
                return None
        else:
            if text_bytes > DECODE_INLINE_BYTES or runs.has_text_inputs:
                return None
            foreseen = foresee(body, header_length=length, inputs=model.inputs)
            if not exchange.hold.try_grow(foreseen.cost_bytes):
                return None
        codec = runs.attached
        if codec is None:
            codec = runs.attached = QuickCodec(runs.key.name, runs.key.version, model.inputs, model.outputs)
        if _WORST_FACTOR * text_bytes <= budget.limit_bytes:
            decoded: InferRequest | None = codec.decode(body, length)
            if decoded is not None:
                return decoded
        return decode_request(
            body,
            header_length=length,
            inputs=model.inputs,
            outputs=model.outputs,
            max_decoded_bytes=budget.limit_bytes,
            foreseen=foreseen,
        )

    def _on_thread(
        self,
        exchange: Exchange,
        slot: Slot,
        runs: ModelRuns,
        decoded: InferRequest,
        names: list[str],
        encoding: Encoding[EncodedResponse],
    ) -> bool:
        """Starts the run on an inference thread, where its memory is free and its outputs are known to be small."""
        figures = runs.demand.look(decoded.feeds)
        if not figures.runs or figures.output_bytes * _JSON_FACTOR > ENCODE_AT_ONCE_BYTES:
            return False
        hold, body_bytes = exchange.hold, len(exchange.body())
        kept = kept_bytes(decoded, body_bytes)
        if body_bytes > DECODE_INLINE_BYTES and any(array.flags.owndata for array in decoded.feeds.values()):
            kept += body_bytes  # which is kept too, for another way to the answer
        if kept > hold.size_bytes:
            if not hold.try_grow(kept - hold.size_bytes):
                return False
        else:
            hold.shrink(kept)
        timeout_s = self.host.settings.server.request_timeout_s
        if decoded.timeout_s is not None:
            timeout_s = min(timeout_s, decoded.timeout_s)
        lease = self.host.pool.grant(slot)
        running = _OnThread(self, exchange, slot.file, runs, lease, encoding, timeout_s)
        try:
            if not runs.try_start(
                decoded.feeds,
                names,
                lambda arrays: self._finish(runs, decoded, encoding, arrays),
                cancel=running.cancel,
                timing=exchange.timing,
                on_end=running.ended,
                figures=figures,
            ):
                lease.end()
                return False
        except BaseException:
            lease.end()
            raise
        self._on_threads.add(running, timeout_s - _elapsed_s(exchange))
        exchange.on_gone = running.gone
        return True

    # --- thoroughly ----------------------------------------------------------------------------------

    def _thoroughly(self, exchange: Exchange) -> None:
        self._begin_task(exchange, self._answer(exchange))

    def _begin_task(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        """Begins what the server waits for at its shutdown."""
        task = asyncio.get_running_loop().create_task(work)
        exchange.tasks.add(task)
        task.add_done_callback(exchange.tasks.discard)

    async def _answer(self, exchange: Exchange) -> None:
        async def read(hold: ByteHold) -> Body:
            body = exchange.take_body()
            hold.take_over(exchange.hold)
            hold.shrink(len(body))
            if len(body) > hold.size_bytes:
                await hold.grow(len(body) - hold.size_bytes)
            return body

        request_ids.begin(exchange.head.request_id)
        exchange.timing.input_ns = exchange.timing.queue_ns = 0
        try:
            answer = await self._routes.answer(
                exchange.head,
                read,
                *exchange.target,
                exchange.timing,
                watch=lambda: GoneWatch(exchange),
            )
        except Exception as error:
            self._fail_unexpected(exchange, error)
        else:
            exchange.hold.end()
            exchange.send(answer)

    def _encode_kept(
        self,
        exchange: Exchange,
        kept: Kept[tuple[Outputs, int]],
        file: ModelFile,
        encoding: Encoding[EncodedResponse],
        timeout_s: float,
    ) -> None:
        exchange.take_body()
        self._begin_task(exchange, self._answer_kept(exchange, kept, file, encoding, timeout_s))

    async def _answer_kept(
        self,
        exchange: Exchange,
        kept: Kept[tuple[Outputs, int]],
        file: ModelFile,
        encoding: Encoding[EncodedResponse],
        timeout_s: float,
    ) -> None:
        """Answers with outputs that wait, when there is memory for their answer."""
        inference, key, encoded = self.inference, ModelKey.of(file), None
        deadline = arrived(exchange.timing) + timeout_s
        try:
            with kept, GoneWatch(exchange):
                encoded = await inference.encode_kept(kept, key, exchange.hold, encoding, exchange.timing, deadline)
        except ClientDisconnect:
            pass
        except ModelHostError as error:
            self._fail(exchange, error, file)
            return
        except asyncio.CancelledError:
            self._fail(exchange, inference.closed(), file)
            return
        except Exception as error:
            self._fail_unexpected(exchange, error)
            return
        if encoded is None or exchange.is_gone:
            inference.note("client_gone", exchange.timing, file)
            exchange.hold.end()
        else:
            inference.note("ok", exchange.timing, file)
            self._send(exchange, encoded)

    # --- answers -------------------------------------------------------------------------------------

    def _send(self, exchange: Exchange, encoded: EncodedResponse) -> None:
        size_bytes = len(encoded.body)
        if size_bytes > ENCODE_AT_ONCE_BYTES:
            answer = Answer.of(encoded, exchange.hold.hand_over(size_bytes))
        else:
            answer = Answer.of(encoded)
        exchange.hold.end()
        exchange.send(answer)

    def _fail(self, exchange: Exchange, error: ModelHostError, file: ModelFile | None) -> None:
        self.inference.note(error.code, exchange.timing, file)
        exchange.hold.end()
        exchange.send(Answer.of_error(error, exchange.request_id))

    def _fail_unexpected(self, exchange: Exchange, error: Exception) -> None:
        exchange.hold.end()
        path = path_of(exchange.target)
        exchange.send(Answer.of_response(respond_unexpected("POST", path, error, exchange.request_id)))


class _OnThread:
    """A run in progress: its exchange is answered when it ends, when its time is over, or when the host closes."""

    __slots__ = ("_encoding", "_exchange", "_file", "_lease", "_of", "_runs", "_timeout_s", "cancel")

    def __init__(
        self,
        of: ShortCut,
        exchange: Exchange,
        file: ModelFile,
        runs: ModelRuns,
        lease: Lease,
        encoding: Encoding[EncodedResponse],
        timeout_s: float,
    ) -> None:
        self._of, self._exchange, self._file, self._lease, self._encoding = of, exchange, file, lease, encoding
        self._runs, self._timeout_s = runs, timeout_s
        self.cancel = CancelToken()

    def ended(self, run: Run) -> None:
        """Answers, where nobody has yet; called when the thread has returned."""
        result, error = run.result, run.error
        run.result = run.error = None  # the error's traceback may have the run: no circle
        self._lease.end()
        of, exchange = self._of, self._exchange
        of._on_threads.discard(self)
        exchange.on_gone = None
        if exchange.response_complete or exchange.is_gone:
            if isinstance(result, Kept):
                result.__exit__(None, None, None)
            exchange.hold.end()
            return
        try:
            if error is not None:
                raise error
            if isinstance(result, Kept):  # larger than the last one: its memory is waited for
                of._encode_kept(exchange, result, self._file, self._encoding, self._timeout_s)
                return
            encoded = of.inference.admit(result, exchange.hold, self._encoding)
        except (ActivationsFull, RunTooLarge):
            of._thoroughly(exchange)
        except ModelHostError as failed:
            of._fail(exchange, failed, self._file)
        except Exception as failed:
            of._fail_unexpected(exchange, failed)
        else:
            of.inference.note_success(exchange.timing, self._runs)
            of._send(exchange, encoded)

    def give_up(self, error: ModelHostError) -> None:
        """Answers with an error, and stops the run; its claims last until it has really returned."""
        self._of.inference.note(error.code, self._exchange.timing, self._file)
        self._exchange.send(Answer.of_error(error, self._exchange.request_id))
        self.cancel.cancel()

    def expire(self) -> None:
        """See Expiring."""
        self.give_up(DeadlineExceeded("the run", waited_s=_elapsed_s(self._exchange)))

    def gone(self) -> None:
        """Stops the run, for whose answer nobody is there any more."""
        self.cancel.cancel()
        self._of.inference.note("client_gone", self._exchange.timing, self._file)


def _elapsed_s(exchange: Exchange) -> float:
    return (time.perf_counter_ns() - exchange.timing.arrived_ns) * 1e-9


def _check_time(exchange: Exchange, timeout_s: float) -> None:
    """Raises DeadlineExceeded where the time that the request gave is over already."""
    if _elapsed_s(exchange) >= timeout_s:
        raise DeadlineExceeded("the run", waited_s=0.0)
