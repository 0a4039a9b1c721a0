"""Inference over HTTP: the body is read and decoded, the answer gets its headers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Final, Protocol, TypeAlias

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from modelhost.api.answers import Answer, AsgiAnswer
from modelhost.api.body import ByteHold
from modelhost.api.codec import (
    Body,
    EncodedResponse,
    Foreseen,
    InferRequest,
    QuickCodec,
    choose_coding,
    compress,
    compress_cost_bytes,
    decode_request,
    decompress,
    decompressed_size_bytes,
    encode_cost_bytes,
    encode_response,
    foresee,
    parse_header_length,
)
from modelhost.api.deadlines import within
from modelhost.api.disconnect import DisconnectWatch
from modelhost.api.errors import CLIENT_GONE, respond_unexpected
from modelhost.api.inference import (
    DECODE_INLINE_BYTES,
    ENCODE_AT_ONCE_BYTES,
    Encoding,
    Face,
    Inference,
    Outputs,
    arrived,
    kept_bytes,
)
from modelhost.api.reading import read_body
from modelhost.errors import HostClosed, HostStarting, ModelHostError
from modelhost.pool import ModelKey, Timing
from modelhost.tensors import Array

#: Nobody is there to read it.
_GONE: Final = Answer.of_response(CLIENT_GONE)

#: Compressing answers up to this takes no time to speak of: what the encoder holds is not counted.
_SMALL_ANSWER_BYTES: Final = 64 << 10

_IDENTITY: Final = ("", "identity")


class Head:
    """What of a request's headers says how its body is to be read, and its answer to be written."""

    __slots__ = ("accept_encoding", "content_encoding", "header_length", "request_id")

    def __init__(
        self,
        header_length: str | None,
        content_encoding: str | None,
        accept_encoding: str | None,
        request_id: str | None = None,
    ) -> None:
        self.header_length, self.accept_encoding, self.request_id = header_length, accept_encoding, request_id
        self.content_encoding = "" if content_encoding is None else content_encoding.strip().lower()

    @classmethod
    def of(cls, request: Request) -> Head:
        """Takes them from the framework's request."""
        get = request.headers.get
        accept_encoding = ", ".join(request.headers.getlist("accept-encoding")) or None
        return cls(get("inference-header-content-length"), get("content-encoding"), accept_encoding)


#: That of a request with no header that matters here.
PLAIN_HEAD: Final = Head(None, None, None)

#: Turns a body into tensors, its memory claimed from the hold, and says how the answer is written.
Decode: TypeAlias = Callable[[Head, Body, ByteHold, Face], Awaitable[tuple[InferRequest, Encoding[EncodedResponse]]]]

#: Returns the whole body, its memory claimed from the hold.
Read: TypeAlias = Callable[[ByteHold], Awaitable[Body]]


class Watch(Protocol):
    """A scope that ends where the client leaves; `is_gone` says so."""

    is_gone: bool

    def __enter__(self) -> Watch: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool: ...


class TensorEncoding:
    """V2's answers."""

    __slots__ = ("_request_id",)

    def __init__(self, request_id: str) -> None:
        self._request_id = request_id

    def cost_bytes(self, outputs: Outputs) -> int:
        """See Encoding."""
        return encode_cost_bytes(outputs)

    def encode(self, key: ModelKey, outputs: Outputs) -> EncodedResponse:
        """See Encoding."""
        return encode_response(
            model_name=key.name, model_version=key.version, request_id=self._request_id, outputs=outputs
        )

    def size_bytes(self, answer: EncodedResponse) -> int:
        """See Encoding."""
        return len(answer.body)


class QuickEncoding(TensorEncoding):
    """V2's answers of a loaded model, the common ones in fewer steps."""

    __slots__ = ("_codec", "_request")

    def __init__(self, request: InferRequest, codec: QuickCodec) -> None:
        super().__init__(request.id)
        self._request, self._codec = request, codec

    def encode_quickly(self, arrays: list[Array]) -> EncodedResponse | None:
        """Returns the answer of the outputs asked for, in order; None where it is not a common one."""
        return self._codec.encode(self._request, arrays)

    def encode(self, key: ModelKey, outputs: Outputs) -> EncodedResponse:
        """See Encoding."""
        quick = self._codec.encode(self._request, [array for _, _, array in outputs])
        return super().encode(key, outputs) if quick is None else quick


class Compressed:
    """Another encoding's answers, compressed where the client asks for that."""

    __slots__ = ("_accept_encoding", "_inner")

    def __init__(self, inner: Encoding[EncodedResponse], accept_encoding: str) -> None:
        self._inner, self._accept_encoding = inner, accept_encoding

    def cost_bytes(self, outputs: Outputs) -> int:
        """See Encoding; what is never compressed costs nothing more."""
        cost_bytes = self._inner.cost_bytes(outputs)
        is_json = not any(asked.binary for asked, _, _ in outputs)
        if choose_coding(self._accept_encoding, body_bytes=cost_bytes, is_json=is_json) is None:
            return cost_bytes
        compress_bytes = compress_cost_bytes(cost_bytes)
        if cost_bytes <= _SMALL_ANSWER_BYTES:  # there is one encoder for each thread, and soon gone
            compress_bytes -= compress_cost_bytes(0)
        return cost_bytes + compress_bytes

    def encode(self, key: ModelKey, outputs: Outputs) -> EncodedResponse:
        """See Encoding."""
        plain = self._inner.encode(key, outputs)
        coding = choose_coding(self._accept_encoding, body_bytes=len(plain.body), is_json=plain.header_length is None)
        if coding is None:
            return plain
        return EncodedResponse(compress(plain.body, coding), plain.header_length, coding)

    def size_bytes(self, answer: EncodedResponse) -> int:
        """See Encoding."""
        return len(answer.body)


class InferRoutes:
    """Answers `POST /v2/models/{name}[/versions/{version}]/infer`, and other forms of it by `answer`."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference
        self._host = inference.host

    async def infer_documented(self, request: Request, name: str, version: str | None = None) -> Response:
        """Runs a model on the tensors in the body; JSON, or JSON followed by binary tensors."""
        raise AssertionError("requests to this route are answered before they are routed")

    async def respond(
        self, request: Request, name: str, version: str | None, decode: Decode | None = None
    ) -> AsgiAnswer:
        """One inference request over ASGI, from its arrival to its answer; V2's where no `decode` is given."""
        timing = self.inference.begin(request.scope["headers"])
        started = asyncio.get_running_loop().time()
        server = self._host.settings.server

        async def read(hold: ByteHold) -> Body:
            return await read_body(
                request,
                hold,
                self.inference.arrivals,
                max_bytes=self._host.budgets.request_bytes,
                deadline=started + server.request_timeout_s,
                pause_s=server.read_timeout,
            )

        def watch() -> Watch:
            return DisconnectWatch(request.receive)

        try:
            self._host.check_accepting()
            answer = await self.answer(Head.of(request), read, name, version, timing, decode=decode, watch=watch)
        except (HostClosed, HostStarting) as error:
            self.inference.note(error.code, timing, None)
            answer = Answer.of_error(error)
        except Exception as error:
            answer = Answer.of_response(respond_unexpected(request.method, request.url.path, error))
        return AsgiAnswer(answer, timeout_s=server.request_timeout_s)

    async def answer(
        self,
        head: Head,
        read: Read,
        name: str,
        version: str | None,
        timing: Timing,
        *,
        decode: Decode | None = None,
        watch: Callable[[], Watch],
    ) -> Answer:
        """One inference request whose body `read` gives, however the server came by it; counts it.

        Raises only what is a bug.
        """
        inference = self.inference
        started, outcome, file = arrived(timing), "ok", None
        until = started + self._host.settings.server.request_timeout_s
        try:
            inference.refuse_exhausted()
            with inference.budget.hold() as hold:
                async with within("receiving or decoding the request", started=started, deadline=until):
                    file, face = await self._host.pool.describe(name, version)
                    hold.model = str(ModelKey.of(file))
                    body = await self._decompressed(head, await read(hold), hold)
                    file, face = await self._host.pool.describe_again(name, version, file, face)
                    decoded, encoding = await self._decoded(head, body, hold, face, timing, decode or self.decode)
                    del body  # of which the tensors keep what they need
                deadline = self._deadline(started, decoded)
                target = name, version
                with watch() as gone:
                    encoded = await inference.run(
                        target, face, decoded, hold, encoding, deadline=deadline, timing=timing
                    )
                if gone.is_gone:
                    answer, outcome = _GONE, "client_gone"
                else:
                    size_bytes = len(encoded.body)
                    is_large = size_bytes > ENCODE_AT_ONCE_BYTES
                    answer = Answer.of(encoded, hold.hand_over(size_bytes) if is_large else None)
        except ClientDisconnect:
            answer, outcome = _GONE, "client_gone"
        except ModelHostError as error:
            answer, outcome = Answer.of_error(error), error.code
        except asyncio.CancelledError:
            # Nobody but the server at its shutdown cancels a request whose client is still there.
            closed = inference.closed()
            answer, outcome = Answer.of_error(closed), closed.code
        inference.note(outcome, timing, file)
        return answer

    def _deadline(self, started: float, decoded: InferRequest) -> float:
        timeout_s = self._host.settings.server.request_timeout_s
        return started + (timeout_s if decoded.timeout_s is None else min(timeout_s, decoded.timeout_s))

    async def _decoded(
        self, head: Head, body: Body, hold: ByteHold, face: Face, timing: Timing, decode: Decode
    ) -> tuple[InferRequest, Encoding[EncodedResponse]]:
        """Decodes the body; what is held afterwards is the tensors."""
        began_ns = time.perf_counter_ns()
        decoded, encoding = await decode(head, body, hold, face)
        timing.decoding_ns, timing.input_ns = began_ns, time.perf_counter_ns() - began_ns
        hold.shrink(kept_bytes(decoded, len(body)))
        if head.accept_encoding and self._host.settings.server.compress_answers:
            encoding = Compressed(encoding, head.accept_encoding)
        return decoded, encoding

    async def _decompressed(self, head: Head, body: Body, hold: ByteHold) -> Body:
        coding, max_bytes = head.content_encoding, self._host.budgets.request_bytes
        if coding in _IDENTITY:
            return body
        # Decoded twice, once only to count: claiming the most it could be would let one request at
        # a time through.
        on_thread = self.inference.on_thread
        size_bytes = await on_thread(lambda: decompressed_size_bytes(body, coding, max_bytes=max_bytes), hold)
        await hold.grow(size_bytes)
        return await on_thread(lambda: decompress(body, coding, max_bytes=max_bytes), hold)

    async def decode(
        self, head: Head, body: Body, hold: ByteHold, face: Face
    ) -> tuple[InferRequest, Encoding[EncodedResponse]]:
        """V2's: JSON, or JSON followed by raw tensors, or one raw tensor."""
        length = parse_header_length(head.header_length, len(body))
        text_bytes = len(body) if length is None else length
        inputs, outputs = face.inputs, face.outputs
        has_text = len(body) > DECODE_INLINE_BYTES and any(spec.datatype == "BYTES" for spec in inputs.values())
        foreseen: Foreseen | None = None

        def cost_bytes() -> int:
            nonlocal foreseen
            foreseen = foresee(body, header_length=length, inputs=inputs)
            return foreseen.cost_bytes

        def decode() -> InferRequest:
            return decode_request(
                body,
                header_length=length,
                inputs=inputs,
                outputs=outputs,
                max_decoded_bytes=self.inference.max_decoded_bytes,
                foreseen=foreseen,
            )

        decoded = await self.inference.decode(
            decode,
            hold,
            cost_bytes=cost_bytes,
            body_bytes=len(body),
            text_bytes=text_bytes,
            slow_bytes=len(body) if has_text else text_bytes,
        )
        return decoded, TensorEncoding(decoded.id)


def infer_target(scope: Scope) -> tuple[str, str | None] | None:
    """Returns name and version where the path is that of an inference request, else None."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return None
    return infer_path(scope["path"])


def infer_path(path: str) -> tuple[str, str | None] | None:
    """Returns name and version of an inference request's path, else None."""
    match path.split("/"):
        case ["", "v2", "models", name, "infer"] if name:
            return name, None
        case ["", "v2", "models", name, "versions", version, "infer"] if name and version:
            return name, version
    return None
