"""The request story: decode, lease, run, encode, end the lease."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from modelhost.api.body import ByteBudget, ByteHold, HeldResponse, read_body
from modelhost.api.codec import (
    EncodedResponse,
    InferRequest,
    OutputRequest,
    decode_cost_bytes,
    decode_request,
    decompress,
    encode_cost_bytes,
    encode_response,
    parse_header_length,
)
from modelhost.api.disconnect import DisconnectWatch
from modelhost.api.metrics import Metrics
from modelhost.errors import InsufficientMemory, ModelHostError
from modelhost.host import Host
from modelhost.pool import Lease
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
_ENCODE_AT_ONCE_BYTES: Final = 256 << 10

Outputs = list[tuple[OutputRequest, TensorSpec, Array]]

#: nginx's status for a client that did not wait; nobody is there to read it.
_CLIENT_GONE: Final = Response(status_code=499)


class InferRoutes:
    """Answers `POST /v2/models/{name}[/versions/{version}]/infer`."""

    def __init__(self, host: Host, metrics: Metrics) -> None:
        self._host, self._metrics = host, metrics

    def open(self) -> None:
        """Takes the budgets of the host, which has opened."""
        self._budget = ByteBudget(self._host.budgets.decoding_bytes, max_waiting=self._host.settings.server.max_queue)

    async def infer(self, request: Request) -> Response:
        """One inference request, from its arrival to its answer."""
        started, began = asyncio.get_running_loop().time(), time.perf_counter()
        name, version = request.path_params["name"], request.path_params.get("version")
        try:
            self._refuse_exhausted()
            file, face = await self._host.pool.describe(name, version)
            with self._budget.hold() as hold:
                body = await self._read(request, hold, started)
                with DisconnectWatch(request.receive) as watch:
                    encoded = await self._answer(request, body, hold, file, face, started)
                response = _CLIENT_GONE if watch.is_gone else self._response(encoded, hold)
        except ClientDisconnect:
            response = _CLIENT_GONE
        except ModelHostError as error:
            self._metrics.observe(name, error.code, time.perf_counter() - began)
            raise
        else:
            self._metrics.observe(name, "ok", time.perf_counter() - began)
        return response

    async def _answer(
        self,
        request: Request,
        body: bytes,
        hold: ByteHold,
        file: ModelFile,
        face: LoadedModel | Inspection,
        started: float,
    ) -> EncodedResponse:
        decoded = await self._decode(request, body, hold, face)
        timeout_s = self._host.settings.server.request_timeout_s
        if decoded.timeout_s is not None:
            timeout_s = min(timeout_s, decoded.timeout_s)
        deadline = started + timeout_s
        lease = await self._host.pool.acquire_file(file, deadline=deadline)
        try:
            return await self._run(lease, decoded, hold, deadline)
        finally:
            lease.end()

    async def _run(self, lease: Lease, decoded: InferRequest, hold: ByteHold, deadline: float) -> EncodedResponse:
        """Runs and encodes on an inference thread.

        Small answers are encoded there and then, their outputs never leave the thread. The memory
        for a large one is claimed first, while its outputs wait where the run has left them.
        """
        key, specs, asked = lease.key, lease.outputs, decoded.outputs

        def encode(results: Outputs) -> EncodedResponse:
            return encode_response(
                model_name=key.name, model_version=key.version, request_id=decoded.id, outputs=results
            )

        def finish(arrays: list[Array]) -> EncodedResponse | tuple[Outputs, int]:
            results = [(out, specs[out.name], value) for out, value in zip(asked, arrays, strict=True)]
            cost_bytes = encode_cost_bytes(results)
            return encode(results) if cost_bytes <= _ENCODE_AT_ONCE_BYTES else (results, cost_bytes)

        done = await lease.run_checked(decoded.feeds, [out.name for out in asked], finish, deadline=deadline)
        if isinstance(done, EncodedResponse):
            return done
        results, cost_bytes = done
        await hold.grow(cost_bytes, what="the answer takes", advice="ask for fewer rows at once, or binary outputs")
        return await self._on_thread(lambda: encode(results))

    def _response(self, encoded: EncodedResponse, hold: ByteHold) -> Response:
        headers = {}
        if encoded.header_length is not None:
            headers["Inference-Header-Content-Length"] = str(encoded.header_length)
        kind = "application/json" if encoded.header_length is None else "application/octet-stream"
        if len(encoded.body) <= _ENCODE_AT_ONCE_BYTES:
            return Response(encoded.body, media_type=kind, headers=headers)
        timeout_s = self._host.settings.server.request_timeout_s
        return HeldResponse(encoded.body, hold.hand_over(len(encoded.body)), kind, headers, timeout_s=timeout_s)

    # --- the body ------------------------------------------------------------------------------------

    async def _read(self, request: Request, hold: ByteHold, started: float) -> bytes:
        max_bytes = self._host.budgets.request_bytes
        deadline = started + self._host.settings.server.request_timeout_s
        body = await read_body(request, hold, max_bytes=max_bytes, deadline=deadline)
        coding = request.headers.get("content-encoding", "identity")
        if coding.strip().lower() == "identity":
            return body
        await hold.grow(min(max_bytes, self._budget.limit_bytes - hold.size_bytes))
        inflated = await self._on_thread(lambda: decompress(body, coding, max_bytes=max_bytes))
        hold.shrink(len(inflated))
        return inflated

    async def _decode(
        self, request: Request, body: bytes, hold: ByteHold, face: LoadedModel | Inspection
    ) -> InferRequest:
        length = parse_header_length(request.headers.get("inference-header-content-length"), len(body))
        text_bytes = len(body) if length is None else length
        max_decoded = self._budget.limit_bytes
        inputs, outputs = face.inputs, face.outputs

        def decode() -> InferRequest:
            return decode_request(
                body, header_length=length, inputs=inputs, outputs=outputs, max_decoded_bytes=max_decoded
            )

        if len(body) <= _DECODE_INLINE_BYTES:
            # One is decoded at a time, and what stays of it is at most this: a text of two characters
            # is some 70 bytes as an element of an array.
            await hold.grow(_KEPT_FACTOR * text_bytes)
            return decode()
        await hold.grow(decode_cost_bytes(body, header_length=length, inputs=inputs))
        has_text = any(spec.datatype == "BYTES" for spec in inputs.values())
        if text_bytes <= _DECODE_INLINE_BYTES and not has_text:
            return decode()
        return await self._on_thread(decode)

    async def _on_thread(self, work: Callable[[], T]) -> T:
        runner, cancel = self._host.pool.runner, CancelToken()
        return await runner.result(runner.submit(work, cancel=cancel), cancel=cancel)

    def _refuse_exhausted(self) -> None:
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
