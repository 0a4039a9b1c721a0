"""ModelInfer and ModelStreamInfer: receive, decode, run, send; the run itself is HTTP's."""

from __future__ import annotations

import asyncio
import time
from typing import Final

import grpc

from modelhost.api.body import ByteHold
from modelhost.api.codec import InferRequest
from modelhost.api.deadlines import within
from modelhost.api.inference import DECODE_INLINE_BYTES, Face, Inference, arrived, kept_bytes
from modelhost.api.rpc.decode import decode_infer, infer_cost_bytes
from modelhost.api.rpc.encode import MessageEncoding
from modelhost.api.rpc.errors import abort, begin, known, text_of
from modelhost.api.rpc.messages import ModelStreamInferResponse
from modelhost.api.rpc.receiving import Call, Receiving
from modelhost.api.rpc.wire import Parts, take_apart
from modelhost.errors import ModelHostError, Overloaded
from modelhost.pool import ModelKey, Timing
from modelhost.repository import ModelFile

_CLIENT_GONE: Final = "client_gone"


class _Asked:
    """A request on its way: when it came and what it took, and for which model, once that is known."""

    __slots__ = ("file", "timing")

    def __init__(self, timing: Timing) -> None:
        self.timing = timing
        self.file: ModelFile | None = None


class InferCalls:
    """Answers inference requests, one by one or in a stream. Event-loop thread."""

    def __init__(self, inference: Inference, receiving: Receiving) -> None:
        self._inference, self._host = inference, inference.host
        self._receiving = receiving
        self.under_way = 0
        """Requests that have no answer yet."""

    async def model_infer(self, _: object, call: Call) -> None:
        """One request and its answer.

        The handler reads and writes by itself, though the call is no stream: so it decides when the message
        may come, and the claim for the answer lasts until it is sent.
        """
        begin(call)
        asked = _Asked(self._inference.begin(call.invocation_metadata() or ()))
        failed: ModelHostError | None = None
        outcome = _CLIENT_GONE
        self.under_way += 1
        try:
            self._host.check_accepting()
            await self._receive_and_answer(call, asked)
            outcome = "ok"
        except Exception as caught:
            failed = known(caught, "ModelInfer")
            outcome = failed.code
        finally:
            self.under_way -= 1
            self._inference.note(outcome, asked.timing, asked.file)
        if failed is not None:
            await abort(call, failed)

    async def _receive_and_answer(self, call: Call, asked: _Asked) -> None:
        self._inference.refuse_exhausted()
        started = asyncio.get_running_loop().time()
        deadline = self._deadline(started, call)
        with self._inference.budget.hold() as hold:
            message = await self._receiving.receive(call, hold, deadline=deadline)
            target, face, decoded = await self._decoded(message, take_apart(message), hold, asked, deadline)
            del message  # of which the tensors keep what they need
            deadline = _sooner(deadline, started, decoded)
            encoding = MessageEncoding(decoded.id, is_stream=False)
            answer = await self._inference.run(
                target, face, decoded, hold, encoding, deadline=deadline, timing=asked.timing
            )
            await call.write(answer)

    async def model_stream_infer(self, _: object, call: Call) -> None:
        """Requests of one client, each answered before the next one is read; an error does not end the stream."""
        begin(call)
        try:
            with self._receiving.stream():
                while await self._answer_next(call):
                    pass
        except Overloaded as caught:
            refused = known(caught, "ModelStreamInfer")
        else:
            return
        await abort(call, refused)

    async def _answer_next(self, call: Call) -> bool:
        """Answers the next request of a stream; returns False where there is none."""
        message = await call.read()
        if message is grpc.aio.EOF:
            return False
        started = asyncio.get_running_loop().time()
        asked = _Asked(self._inference.begin(call.invocation_metadata() or ()))
        outcome, request_id = "ok", ""
        self.under_way += 1
        try:
            deadline = self._deadline(started, call)
            with self._inference.budget.hold() as hold:
                try:
                    self._host.check_accepting()
                    self._inference.refuse_exhausted()
                    async with within("waiting for the memory of the message", started=started, deadline=deadline):
                        await hold.grow(len(message))
                    parts = take_apart(message)
                    request_id = parts.request_id
                    target, face, decoded = await self._decoded(message, parts, hold, asked, deadline)
                    del message
                    deadline = _sooner(deadline, started, decoded)
                    encoding = MessageEncoding(request_id, is_stream=True)
                    answer = await self._inference.run(
                        target, face, decoded, hold, encoding, deadline=deadline, timing=asked.timing
                    )
                except Exception as caught:
                    failed = known(caught, "ModelStreamInfer")
                    outcome, answer = failed.code, _failure(request_id, failed)
                    del failed
                await call.write(answer)
        except asyncio.CancelledError:
            outcome = _CLIENT_GONE
            raise
        finally:
            self.under_way -= 1
            self._inference.note(outcome, asked.timing, asked.file)
        return True

    def _deadline(self, started: float, call: Call) -> float:
        """Returns the host's time limit for a request, or the call's own where that is sooner."""
        timeout_s = self._host.settings.server.request_timeout_s
        remaining_s = call.time_remaining()
        return started + (timeout_s if remaining_s is None else min(timeout_s, remaining_s))

    async def _decoded(
        self, message: bytes, parts: Parts, hold: ByteHold, asked: _Asked, deadline: float
    ) -> tuple[tuple[str, str | None], Face, InferRequest]:
        """Returns what was asked for, its face and the tensors; what is held afterwards is the tensors."""
        async with within("decoding the request", started=arrived(asked.timing), deadline=deadline):
            target = parts.model_name, parts.model_version or None
            file, face = await self._host.pool.describe(*target)
            asked.file, hold.model = file, str(ModelKey.of(file))
            began_ns = time.perf_counter_ns()
            decoded = await self._decode(message, parts, hold, face)
        asked.timing.decoding_ns, asked.timing.input_ns = began_ns, time.perf_counter_ns() - began_ns
        hold.shrink(kept_bytes(decoded, len(message)))
        return target, face, decoded

    async def _decode(self, message: bytes, parts: Parts, hold: ByteHold, face: Face) -> InferRequest:
        inputs, outputs = face.inputs, face.outputs
        await hold.grow(infer_cost_bytes(message, parts, inputs))
        has_text = any(spec.datatype == "BYTES" for spec in inputs.values())
        looked_at_bytes = len(message) if has_text else parts.head_bytes
        if looked_at_bytes <= DECODE_INLINE_BYTES:
            return decode_infer(message, parts, inputs=inputs, outputs=outputs)
        return await self._inference.on_thread(
            lambda: decode_infer(message, parts, inputs=inputs, outputs=outputs), hold
        )


def _sooner(deadline: float, started: float, decoded: InferRequest) -> float:
    """Returns the deadline, or where the request asks for less time, that one."""
    return deadline if decoded.timeout_s is None else min(deadline, started + decoded.timeout_s)


def _failure(request_id: str, error: ModelHostError) -> bytes:
    """Returns what a stream has in place of an answer."""
    failed = ModelStreamInferResponse(error_message=text_of(error))
    failed.infer_response.id = request_id
    data: bytes = failed.SerializeToString()
    return data
