"""The request story: decode, lease, run, encode, end the lease."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from modelhost.api.body import ByteBudget, ByteHold, HeldResponse, read_body
from modelhost.api.codec import (
    EncodedResponse,
    InferRequest,
    OutputRequest,
    decode_cost_bytes,
    decode_request,
    decompress,
    decompressed_size_bytes,
    encode_cost_bytes,
    encode_response,
    parse_header_length,
)
from modelhost.api.disconnect import DisconnectWatch
from modelhost.api.errors import CLIENT_GONE, respond
from modelhost.api.metrics import Metrics
from modelhost.errors import HostClosed, InsufficientMemory, ModelHostError, Overloaded, RequestTooLarge
from modelhost.host import Host
from modelhost.pool import Kept, Lease, ModelKey
from modelhost.repository import ModelFile
from modelhost.runtime.base import CancelToken, Inspection, LoadedModel
from modelhost.tensors import Array, TensorSpec
from modelhost.units import format_bytes

T = TypeVar("T")

#: JSON above this is decoded on an inference thread, so that the event loop is not held up: this
#: much takes about 2 ms. Binary tensors are views on the body and cost nothing.
_DECODE_INLINE_BYTES: Final = 64 << 10

#: What decoded tensors hold for each byte of small JSON, at most.
_KEPT_FACTOR: Final = 16

#: Answers up to this are encoded and sent without a claim of their own.
ENCODE_AT_ONCE_BYTES: Final = 256 << 10

ANSWER_TAKES: Final = "the answer takes"
FEWER_ROWS: Final = "ask for fewer rows at once, or for binary outputs"

Outputs = list[tuple[OutputRequest, TensorSpec, Array]]


class Encoding(Protocol):
    """How the outputs of one request become its answer. Pure; any thread."""

    def cost_bytes(self, outputs: Outputs) -> int:
        """Returns an upper bound for the bytes that `encode` makes."""

    def encode(self, key: ModelKey, outputs: Outputs) -> EncodedResponse:
        """Returns the answer of the model `key`. Raises UnrepresentableOutput."""


Face: TypeAlias = LoadedModel | Inspection

#: Turns a body into tensors, its memory claimed from the hold, and says how the answer is written.
Decode: TypeAlias = Callable[[Request, bytes, ByteHold, Face], Awaitable[tuple[InferRequest, Encoding]]]


class _TensorEncoding:
    """V2's answers."""

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def cost_bytes(self, outputs: Outputs) -> int:
        return encode_cost_bytes(outputs)

    def encode(self, key: ModelKey, outputs: Outputs) -> EncodedResponse:
        return encode_response(
            model_name=key.name, model_version=key.version, request_id=self._request_id, outputs=outputs
        )


class InferRoutes:
    """Answers `POST /v2/models/{name}[/versions/{version}]/infer`, and other forms of it by `answer`."""

    def __init__(self, host: Host, metrics: Metrics) -> None:
        self._host, self._metrics = host, metrics

    def open(self) -> None:
        """Takes the budgets of the host, which has opened."""
        self.budget = ByteBudget(self._host.budgets.decoding_bytes, max_waiting=self._host.settings.server.max_queue)

    async def infer_documented(self, request: Request, name: str, version: str | None = None) -> Response:
        """Runs a model on the tensors in the body; JSON, or JSON followed by binary tensors."""
        return await self.infer(request, name, version)

    async def infer(self, request: Request, name: str, version: str | None) -> Response:
        """One V2 inference request, from its arrival to its answer."""
        return await self.answer(request, name, version, self._decode)

    async def answer(self, request: Request, name: str, version: str | None, decode: Decode) -> Response:
        """One inference request, whose form is `decode`'s, from its arrival to its answer."""
        started, began = asyncio.get_running_loop().time(), time.perf_counter()
        outcome = "ok"
        try:
            self.refuse_exhausted()
            file, face = await self._host.pool.describe(name, version)
            with self.budget.hold() as hold:
                decoded, encoding = await self._receive(request, hold, face, started, decode)
                with DisconnectWatch(request.receive) as watch:
                    encoded = await self._answer(decoded, encoding, hold, file, started)
                response = CLIENT_GONE if watch.is_gone else self._response(encoded, hold)
            if watch.is_gone:
                outcome = "client_gone"
        except ClientDisconnect:
            response, outcome = CLIENT_GONE, "client_gone"
        except ModelHostError as error:
            response, outcome = respond(error), error.code
        except asyncio.CancelledError:
            # Nobody but the server at its shutdown cancels a request whose client is still there.
            closed = HostClosed("the host is shutting down")
            response, outcome = respond(closed), closed.code
        self._metrics.observe(outcome, time.perf_counter() - began)
        return response

    async def _answer(
        self, decoded: InferRequest, encoding: Encoding, hold: ByteHold, file: ModelFile, started: float
    ) -> EncodedResponse:
        timeout_s = self._host.settings.server.request_timeout_s
        if decoded.timeout_s is not None:
            timeout_s = min(timeout_s, decoded.timeout_s)
        deadline = started + timeout_s
        lease = await self._host.pool.acquire_file(file, deadline=deadline)
        try:
            return await self._run(lease, decoded, encoding, hold, deadline)
        finally:
            lease.end()

    async def _run(
        self, lease: Lease, decoded: InferRequest, encoding: Encoding, hold: ByteHold, deadline: float
    ) -> EncodedResponse:
        """Runs and encodes on an inference thread.

        Small answers are encoded there and then, their outputs never leave the thread. The memory
        for a large one is claimed first, while its outputs wait where the run has left them.
        """
        key, specs, asked = lease.key, lease.outputs, decoded.outputs

        def encode(results: Outputs) -> EncodedResponse:
            return encoding.encode(key, results)

        def finish(arrays: list[Array]) -> EncodedResponse | Kept[tuple[Outputs, int]]:
            results = [(out, specs[out.name], value) for out, value in zip(asked, arrays, strict=True)]
            cost_bytes = encoding.cost_bytes(results)
            if cost_bytes <= ENCODE_AT_ONCE_BYTES:
                return encode(results)
            if not any(array.dtype.kind == "O" for array in arrays):
                return Kept((results, cost_bytes), sum(array.nbytes for array in arrays))
            # Text lies on the heap, outside the arena's ceiling: it must not wait in line.
            if cost_bytes > self.budget.limit_bytes:
                raise RequestTooLarge(
                    ANSWER_TAKES, size_bytes=cost_bytes, limit_bytes=self.budget.limit_bytes, advice=FEWER_ROWS
                )
            if cost_bytes > self.budget.free_bytes:
                raise no_room(cost_bytes, self.budget.free_bytes)
            return encode(results)

        done = await lease.run_checked(decoded.feeds, [out.name for out in asked], finish, deadline=deadline)
        if isinstance(done, EncodedResponse):
            size_bytes = len(done.body)
            if size_bytes > ENCODE_AT_ONCE_BYTES and not hold.try_grow(size_bytes):
                raise no_room(size_bytes, self.budget.free_bytes)
            return done
        with done as (results, cost_bytes):
            # The line for the answer's memory may wait for requests that wait for this one's model and
            # for its body's memory: both are given up first.
            lease.end()
            decoded.feeds.clear()
            hold.shrink(0)
            await hold.grow(
                cost_bytes,
                is_last_step=True,
                what=ANSWER_TAKES,
                advice=FEWER_ROWS,
            )
            encoded = await self.on_thread(lambda: encode(results), kept=done)
            results.clear()
        return encoded

    def _response(self, encoded: EncodedResponse, hold: ByteHold) -> Response:
        headers = {}
        if encoded.header_length is not None:
            headers["Inference-Header-Content-Length"] = str(encoded.header_length)
        kind = "application/json" if encoded.header_length is None else "application/octet-stream"
        if len(encoded.body) <= ENCODE_AT_ONCE_BYTES:
            return Response(encoded.body, media_type=kind, headers=headers)
        timeout_s = self._host.settings.server.request_timeout_s
        return HeldResponse(encoded.body, hold.hand_over(len(encoded.body)), kind, headers, timeout_s=timeout_s)

    # --- the body ------------------------------------------------------------------------------------

    async def _receive(
        self, request: Request, hold: ByteHold, face: Face, started: float, decode: Decode
    ) -> tuple[InferRequest, Encoding]:
        """Reads and decodes the body; what is held afterwards is the tensors."""
        body = await self._read(request, hold, started)
        decoded, encoding = await decode(request, body, hold, face)
        hold.shrink(kept_bytes(decoded, len(body)))
        return decoded, encoding

    async def _read(self, request: Request, hold: ByteHold, started: float) -> bytes:
        max_bytes = self._host.budgets.request_bytes
        server = self._host.settings.server
        body = await read_body(
            request,
            hold,
            max_bytes=max_bytes,
            deadline=started + server.request_timeout_s,
            pause_s=server.receive_timeout_s,
        )
        coding = request.headers.get("content-encoding", "identity")
        if coding.strip().lower() == "identity":
            return body
        # Decoded twice, once only to count: claiming the most it could be would let one request at
        # a time through.
        size_bytes = await self.on_thread(lambda: decompressed_size_bytes(body, coding, max_bytes=max_bytes))
        await hold.grow(size_bytes)
        return await self.on_thread(lambda: decompress(body, coding, max_bytes=max_bytes))

    async def _decode(self, request: Request, body: bytes, hold: ByteHold, face: Face) -> tuple[InferRequest, Encoding]:
        length = parse_header_length(request.headers.get("inference-header-content-length"), len(body))
        text_bytes = len(body) if length is None else length
        inputs, outputs = face.inputs, face.outputs
        has_text = any(spec.datatype == "BYTES" for spec in inputs.values())

        def decode() -> InferRequest:
            return decode_request(
                body, header_length=length, inputs=inputs, outputs=outputs, max_decoded_bytes=self.budget.limit_bytes
            )

        decoded = await self.decode(
            decode,
            hold,
            cost_bytes=lambda: decode_cost_bytes(body, header_length=length, inputs=inputs),
            body_bytes=len(body),
            text_bytes=text_bytes,
            slow_bytes=len(body) if has_text else text_bytes,
        )
        return decoded, _TensorEncoding(decoded.id)

    @property
    def max_decoded_bytes(self) -> int:
        """What decoding one request may take at the most."""
        return self.budget.limit_bytes

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
        of their JSON, others `cost_bytes()`, which looks at all of it.
        """
        if body_bytes <= _DECODE_INLINE_BYTES:
            # One is decoded at a time, and what stays of it is at most this: a text of two characters
            # is some 70 bytes as an element of an array.
            await hold.grow(_KEPT_FACTOR * text_bytes)
            return work()
        await hold.grow(cost_bytes())
        return work() if slow_bytes <= _DECODE_INLINE_BYTES else await self.on_thread(work)

    async def on_thread(self, work: Callable[[], T], *, kept: Kept[Any] | None = None) -> T:
        """Works on an inference thread; what is done to `kept` outputs has their claim until it is over."""
        cancel = CancelToken()
        return await self._host.pool.runner.result(self._submit(work, cancel, kept), cancel=cancel)

    def _submit(self, work: Callable[[], T], cancel: CancelToken, kept: Kept[Any] | None) -> asyncio.Future[T]:
        runner = self._host.pool.runner
        if kept is None:
            return runner.submit(work, cancel=cancel)
        job = runner.submit(work, cancel=cancel, on_end=kept.end_use)
        kept.begin_use()
        return job

    def refuse_exhausted(self) -> None:
        """Refuses work while usage is within `memory.min_free` of the limit: it might be what is killed."""
        memory = self._host.memory
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


def no_room(cost_bytes: int, free_bytes: int) -> Overloaded:
    """Returns the refusal of an answer for which nothing is free now."""
    text = f"the answer takes {format_bytes(cost_bytes)}, {format_bytes(free_bytes)} are free for answers now"
    return Overloaded("answers", waiting=0, limit=0, text=text)


def infer_target(scope: Scope) -> tuple[str, str | None] | None:
    """Returns name and version where the path is that of an inference request, else None."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    match scope["path"].split("/"):
        case ["", "v2", "models", name, "infer"] if name:
            return name, None
        case ["", "v2", "models", name, "versions", version, "infer"] if name and version:
            return name, version
    return None


def kept_bytes(decoded: InferRequest, body_bytes: int) -> int:
    """Returns what decoded tensors hold: numbers their arrays, or the body that those are views on."""
    kept = 0
    for array in decoded.feeds.values():
        if array.dtype.kind == "O":
            kept += array.nbytes + sum(sys.getsizeof(text) for text in array.ravel().tolist())
        else:
            kept += array.nbytes if array.flags.owndata else body_bytes
    return kept
