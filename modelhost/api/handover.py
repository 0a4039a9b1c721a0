"""Requests that another process of the host runs, since it holds the model and there is no memory for it twice.

What is handed over are decoded tensors, whatever protocol they came by, and what comes back are outputs: so one way
serves all protocols, and decoding, encoding and counting stay with the process that has the client.

Memory is claimed once: the claim on a request's tensors stands here until its answer begins, and they leave this
process when they are sent, unless they are small; the claim on an answer begins here with its head. What is handed
over is never handed on (see handed.py).
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Final, TypeVar

from modelhost import errors
from modelhost.api import request_ids
from modelhost.api.body import ByteHold
from modelhost.api.codec import InferRequest
from modelhost.api.deadlines import within
from modelhost.api.inference import ENCODE_AT_ONCE_BYTES, Encoding, Face, Inference, Outputs, arrived
from modelhost.api.lines import Head, Line, Lines
from modelhost.api.parcel import Buffer, pack, text_cost_bytes, unpack, unpack_head
from modelhost.api.peers import ALONE, TRUSTED
from modelhost.errors import (
    DeadlineExceeded,
    HeldElsewhere,
    InsufficientMemory,
    ModelHostError,
    WorkerRestarting,
)
from modelhost.memory.board import Seat
from modelhost.pool import ModelKey, Timing
from modelhost.tensors import TensorSpec

log = logging.getLogger("modelhost")

A = TypeVar("A")

#: Where one process asks another for a run; only with the board's secret.
PATH: Final = "/board/run"
HEAD_LENGTH: Final = b"x-modelhost-head"
TOOK: Final = b"x-modelhost-took"
"""What the run took, see Took."""

#: Tensors up to this stay here while they are away, so that the request can be answered if that process ends.
_KEPT_BYTES: Final = 64 << 10

#: The other process ends the run in time, and says what took so long; this is for where it does not.
_SLACK_S: Final = 0.25

#: Questions to one process at a time: each is a connection there, of those that clients have too.
_AT_ONCE: Final = 64

_ANSWER_TAKES: Final = "the answer of another process takes"


class _Gone(Exception):
    """The other process has ended, or does not hold the model any more, which `error` says."""

    def __init__(self, reason: str, error: ModelHostError | None = None) -> None:
        super().__init__(reason)
        self.error = error


class HandOver:
    """Has others run what does not fit here. Event-loop thread."""

    def __init__(self, seat: Seat, inference: Inference) -> None:
        self._seat, self._inference, self._lines = seat, inference, Lines(seat)
        self._turns = [asyncio.Semaphore(_AT_ONCE) for _ in range(seat.seats)]
        self.handed_over = 0
        """Requests that others have answered."""

    def close(self) -> None:
        """Ends what is kept open."""
        self._lines.close()

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
        """Returns the answer of the process that holds the model, or one of this process's own where that is not so any
        more. Raises what Inference.run raises, and WorkerRestarting where it has ended in the middle of a large one."""
        try:
            outputs = await self._outputs(held, face, decoded, hold, deadline, timing)
        except _Gone as gone:
            log.warning("%s was not answered by process %d of the host: %s", held.name, held.seat, gone)
            error = gone.error or WorkerRestarting(f"process {held.seat} of the host")
        else:
            self.handed_over += 1
            return await self._encoded(held, outputs, hold, encoding, timing, deadline)
        if not decoded.feeds:
            raise error
        self._inference.host.pool.not_elsewhere(ModelKey(held.name, held.version))
        return await self._inference.run_here(target, face, decoded, hold, encoding, deadline=deadline, timing=timing)

    # --- there -----------------------------------------------------------------------------------------

    async def _outputs(
        self,
        held: HeldElsewhere,
        face: Face,
        decoded: InferRequest,
        hold: ByteHold,
        deadline: float,
        timing: Timing,
    ) -> Outputs:
        """Asks, and returns the outputs; their memory is claimed in `hold`."""
        started = arrived(timing)
        left_s = deadline - asyncio.get_running_loop().time()
        if left_s <= 0:
            raise DeadlineExceeded("the run", waited_s=0.0)
        parts = await self._packed(held, decoded, hold, left_s)
        is_large = hold.size_bytes > _KEPT_BYTES
        if is_large:
            decoded.feeds.clear()
        line: Line | None = None
        is_over = False
        try:
            async with (
                within("the run, in another process,", started=started, deadline=deadline + _SLACK_S),
                self._turns[held.seat],
            ):
                line, head = await self._ask(held.seat, parts, may_be_kept=not is_large)
                if head.status != 200:
                    failed = error_of(unpack_head(await line.read(head.length)))
                    is_over = True
                    raise failed
                outputs = await self._received(line, head, face, decoded, hold)
                is_over = True
        except InsufficientMemory as error:
            if type(error) in (InsufficientMemory, HeldElsewhere):  # it has let go of the model meanwhile
                raise _Gone(str(error), error.with_traceback(None)) from None
            raise
        except (OSError, EOFError, ValueError, KeyError) as error:  # the last: its files are others now
            raise _Gone(str(error) or type(error).__name__) from None
        finally:
            if line is not None and is_over:
                self._lines.keep(held.seat, line)
            elif line is not None:  # which stops the run
                line.close()
        _note_times(timing, head)
        return outputs

    async def _packed(self, held: HeldElsewhere, decoded: InferRequest, hold: ByteHold, left_s: float) -> list[Buffer]:
        """Returns the question in pieces."""
        head = {
            "model": held.name,
            "version": held.version,
            "outputs": [out.name for out in decoded.outputs],
            "timeout_s": left_s,
        }

        def packed() -> tuple[int, list[Buffer]]:
            return pack(head, decoded.feeds.items())

        has_text = any(array.dtype.kind == "O" for array in decoded.feeds.values())
        is_slow = has_text and hold.size_bytes > _KEPT_BYTES
        head_bytes, pieces = await self._inference.on_thread(packed, hold) if is_slow else packed()
        lines = [
            b"POST %b HTTP/1.1" % PATH.encode(),
            b"host: modelhost",
            b"%b: 1" % ALONE,
            b"%b: %b" % (TRUSTED, self._seat.board.secret),
            b"%b: %d" % (HEAD_LENGTH, head_bytes),
            b"content-length: %d" % sum(map(len, pieces)),
        ]
        if (request_id := request_ids.known()) is not None:
            lines.append(b"%b: %b" % (request_ids.RAW_HEADER, request_id.encode()))
        return [b"\r\n".join(lines) + b"\r\n\r\n", *pieces]

    async def _ask(self, seat: int, parts: list[Buffer], *, may_be_kept: bool) -> tuple[Line, Head]:
        """Sends a question, and returns the head of its answer. One that `may_be_kept` goes on a line that is open, and
        once more where its other end has gone; of any other nothing is left in `parts`."""
        line = self._lines.kept(seat) if may_be_kept else None
        if line is not None:
            try:
                await line.send(parts)
                return line, await line.head()
            except (OSError, EOFError):  # its other end has gone, perhaps long ago
                line.close()
            except BaseException:
                line.close()
                raise
        line = await self._lines.open(seat)
        try:
            await line.send(parts)
            if not may_be_kept:
                parts.clear()
            return line, await line.head()
        except BaseException:
            line.close()
            raise

    async def _received(self, line: Line, head: Head, face: Face, decoded: InferRequest, hold: ByteHold) -> Outputs:
        """Reads the outputs, whose memory is claimed before; nothing is held of the request any more."""
        hold.shrink(0)
        said = unpack_head(await line.read(int(head.headers[HEAD_LENGTH])))
        body_bytes = head.length - int(head.headers[HEAD_LENGTH])
        cost_bytes = body_bytes + text_cost_bytes(said)
        if cost_bytes > ENCODE_AT_ONCE_BYTES:
            await hold.grow(cost_bytes, is_last_step=True, what=_ANSWER_TAKES)
        arrays = unpack(said, await line.read(body_bytes))
        return [(out, _plain(face.outputs.get(out.name), out.name), arrays[out.name]) for out in decoded.outputs]

    # --- here again ------------------------------------------------------------------------------------

    async def _encoded(
        self,
        held: HeldElsewhere,
        outputs: Outputs,
        hold: ByteHold,
        encoding: Encoding[A],
        timing: Timing,
        deadline: float,
    ) -> A:
        """Returns the answer to the client; of a large one the memory is claimed."""
        key = ModelKey(held.name, held.version)
        cost_bytes = encoding.cost_bytes(outputs)
        if cost_bytes <= ENCODE_AT_ONCE_BYTES:
            answer = encoding.encode(key, outputs)
            hold.shrink(0)
            return answer
        async with within("waiting for the answer's memory", started=arrived(timing), deadline=deadline):
            hold.model = str(key)
            await hold.grow(cost_bytes, is_last_step=True, what=_ANSWER_TAKES)
            answer = await self._inference.on_thread(lambda: encoding.encode(key, outputs), hold)
        outputs.clear()
        hold.shrink(encoding.size_bytes(answer))
        return answer


def _plain(spec: TensorSpec | None, name: str) -> TensorSpec:
    """Returns an output's spec as it is here: elements that are structured have come as their JSON text."""
    if spec is None:
        return TensorSpec(name, "", None)
    return TensorSpec(name, spec.datatype, spec.shape, spec.dim_names) if spec.is_structured else spec


def took(timing: Timing) -> bytes:
    """Returns what a run took, for who has asked for it."""
    run_rows = getattr(timing, "run_rows", 0)
    return b"%d %d %d %d %d %d" % (
        timing.queue_ns,
        getattr(timing, "load_ns", 0),
        timing.infer_ns,
        timing.output_ns,
        timing.rows,
        run_rows,
    )


def _note_times(timing: Timing, head: Head) -> None:
    figures = head.headers.get(TOOK, b"").split()
    if len(figures) == 6:
        timing.queue_ns, timing.load_ns, timing.infer_ns, timing.output_ns, timing.rows, run_rows = map(int, figures)
        if run_rows:
            timing.run_rows = run_rows


# --- errors on the way -----------------------------------------------------------------------------------


def plain_of(error: ModelHostError) -> dict[str, Any]:
    """Returns one of our errors as plain values."""
    return {"kind": type(error).__name__, "text": str(error), "figures": vars(error)}


def error_of(plain: dict[str, Any]) -> ModelHostError:
    """Returns the error that another process has raised; one that it did not mean to is a ValueError."""
    kind = getattr(errors, str(plain.get("kind")), None)
    if not (isinstance(kind, type) and issubclass(kind, ModelHostError)):
        raise ValueError("it has failed, its log has why")
    error: ModelHostError = kind.__new__(kind, plain["text"])
    error.__dict__.update(plain["figures"])
    return error
