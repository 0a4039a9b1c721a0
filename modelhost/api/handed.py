"""What other processes of the host ask this one to run, as it holds the model; see handover.py.

Their claims cover the request until its answer begins, and the answer from then on: what this process holds of both
is in a budget beside that of its own requests, so that nothing is claimed twice and nobody waits for himself. What
comes here is run here, or refused, and never handed on. It counts where it came from.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

import orjson
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from modelhost.api.answers import Answer, AsgiAnswer
from modelhost.api.body import ByteBudget, ByteHold
from modelhost.api.codec import InferRequest, OutputRequest, encode_cost_bytes
from modelhost.api.disconnect import DisconnectWatch
from modelhost.api.handover import HEAD_LENGTH, PATH, TOOK, plain_of, took
from modelhost.api.inference import DECODE_INLINE_BYTES, ENCODE_AT_ONCE_BYTES, Face, Inference, Outputs
from modelhost.api.parcel import Buffer, pack, text_cost_bytes, unpack, unpack_head
from modelhost.errors import ActivationsFull, InvalidRequest, ModelHostError, RunTooLarge
from modelhost.pool import ModelKey, Timing
from modelhost.tensors import check_feeds, check_outputs

log = logging.getLogger("modelhost")

_FAILED: Final = 500


class _ParcelEncoding:
    """Answers for another process: outputs as raw tensors, and how long their head is."""

    def cost_bytes(self, outputs: Outputs) -> int:
        """See Encoding."""
        return encode_cost_bytes([(OutputRequest(out.name, True), spec, array) for out, spec, array in outputs])

    def encode(self, key: ModelKey, outputs: Outputs) -> tuple[int, bytes]:
        """See Encoding."""
        structured = [out.name for out, spec, _ in outputs if spec.is_structured]
        head_bytes, pieces = pack({}, [(out.name, array) for out, _, array in outputs], structured=structured)
        return head_bytes, b"".join(pieces)

    def size_bytes(self, answer: tuple[int, bytes]) -> int:
        """See Encoding."""
        return len(answer[1])


class Handed:
    """Runs what others ask for. Event-loop thread."""

    path: Final = PATH
    """Where they ask."""

    def __init__(self, inference: Inference) -> None:
        self._inference, self._host = inference, inference.host

    def open(self) -> None:
        """Takes the budgets of the host, which has opened."""
        settings = self._host.settings.server
        self._credit = ByteBudget(self._host.budgets.decoding_bytes, max_waiting=settings.max_queue)
        self._host.on_budgets(lambda budgets: self._credit.resize(budgets.decoding_bytes))

    async def respond(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one question; who asks has shown that it is of this host."""
        headers = dict(scope["headers"])
        try:
            with self._credit.hold() as hold:
                answer = await self._answer(headers, receive, hold)
        except ClientDisconnect:
            return
        except ModelHostError as error:
            answer = _failure(orjson.dumps(plain_of(error), default=str))
        except asyncio.CancelledError:
            answer = _failure(orjson.dumps(plain_of(self._inference.closed())))
        except Exception:
            log.exception("what another process of the host asked for failed")
            answer = _failure(b"{}")
        await AsgiAnswer(answer, timeout_s=self._host.settings.server.request_timeout_s)(scope, receive, send)

    async def _answer(self, headers: Mapping[bytes, bytes], receive: Receive, hold: ByteHold) -> Answer:
        inference = self._inference
        timing = inference.begin(())
        inference.refuse_exhausted()
        size_bytes, head_bytes = int(headers[b"content-length"]), int(headers[HEAD_LENGTH])
        await hold.grow(size_bytes)
        parcel = await _read(receive, size_bytes)
        head = unpack_head(parcel[:head_bytes])
        deadline = asyncio.get_running_loop().time() + float(head["timeout_s"])
        target = str(head["model"]), str(head["version"])
        file, face = await self._host.pool.describe(*target)
        hold.model = str(ModelKey.of(file))
        text_bytes = text_cost_bytes(head)
        feeds_of: Buffer = parcel[head_bytes:]
        del parcel
        if text_bytes > DECODE_INLINE_BYTES:
            await hold.grow(text_bytes)
            feeds = await inference.on_thread(lambda: unpack(head, feeds_of), hold)
        else:
            feeds = unpack(head, feeds_of)
        check_feeds(face.inputs, feeds)
        check_outputs(face.outputs, head["outputs"])
        decoded = InferRequest("", feeds, tuple(OutputRequest(name, True) for name in head["outputs"]), None)
        encoding = _ParcelEncoding()
        quick = self._run_in_place(target, face, decoded, encoding, timing)
        if quick is not None:
            return _answer(*quick, timing)
        with DisconnectWatch(receive) as gone:
            head_bytes, body = await inference.run_here(
                target, face, decoded, hold, encoding, deadline=deadline, timing=timing
            )
        if gone.is_gone:
            raise ClientDisconnect
        kept = hold.hand_over(len(body)) if len(body) > ENCODE_AT_ONCE_BYTES else None
        return _answer(head_bytes, body, timing, kept)

    def _run_in_place(
        self,
        target: tuple[str, str],
        face: Face,
        decoded: InferRequest,
        encoding: _ParcelEncoding,
        timing: Timing,
    ) -> tuple[int, bytes] | None:
        """Runs here and now what is known to be short, as the short cut does; None where it is not."""
        pool = self._host.pool
        slot = pool.resident(target)
        if slot is None or slot.runs is None or slot.model is not face:
            return None
        try:
            arrays = slot.runs.try_in_place(decoded.feeds, [out.name for out in decoded.outputs], timing)
        except (ActivationsFull, RunTooLarge):
            return None  # which is told by who waits for the whole arena
        if arrays is None:
            return None
        pool.touch(slot)
        specs = slot.runs.model.outputs
        outputs = [(out, specs[out.name], array) for out, array in zip(decoded.outputs, arrays, strict=True)]
        return encoding.encode(slot.key, outputs)


async def _read(receive: Receive, size_bytes: int) -> memoryview:
    """Returns the body, whose length is known."""
    buffer, taken = bytearray(size_bytes), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        piece = message.get("body", b"")
        buffer[taken : taken + len(piece)] = piece
        taken += len(piece)
        if not message.get("more_body"):
            break
    if taken != size_bytes:
        raise InvalidRequest(f"{size_bytes} bytes were to come, and {taken} came")
    return memoryview(buffer).toreadonly()


def _answer(head_bytes: int, body: bytes, timing: Timing, hold: ByteHold | None = None) -> Answer:
    return Answer(200, body, extra=((HEAD_LENGTH, b"%d" % head_bytes), (TOOK, took(timing))), hold=hold)


def _failure(body: bytes) -> Answer:
    return Answer(_FAILED, body)
