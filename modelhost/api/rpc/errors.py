"""Every error that modelhost raises, as a gRPC status: one table, beside HTTP's in `api/errors.py`."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Final, NoReturn

import grpc

from modelhost import errors
from modelhost.api import request_ids
from modelhost.api.errors import INTERNAL, answer_of, tell
from modelhost.api.rpc.receiving import Call
from modelhost.security.texts import without_paths

log = logging.getLogger("modelhost")

#: Status by class; a subclass without a line of its own has its nearest base's.
#:
#: UNAVAILABLE is what clients try again by themselves, KServe's within seconds: right for a queue, which
#: drains in about one, and for a host that leaves while another comes. Memory that models or runs hold
#: does not come back so fast, a retry would only add to the load: RESOURCE_EXHAUSTED. A broken model stays
#: broken until somebody mends its files, which is what FAILED_PRECONDITION says. A worker that crashed may do so
#: because of the very request, which is not to be sent again by itself: INTERNAL.
CODES: Final[Mapping[type[errors.ModelHostError], grpc.StatusCode]] = {
    errors.InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    errors.UnrepresentableOutput: grpc.StatusCode.INVALID_ARGUMENT,
    errors.ModelNotFound: grpc.StatusCode.NOT_FOUND,
    errors.Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    errors.Forbidden: grpc.StatusCode.PERMISSION_DENIED,
    errors.RequestTooLarge: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.MemoryRefusal: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Overloaded: grpc.StatusCode.UNAVAILABLE,
    errors.HostClosed: grpc.StatusCode.UNAVAILABLE,
    errors.HostStarting: grpc.StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    errors.ModelBroken: grpc.StatusCode.FAILED_PRECONDITION,
    errors.RunFailed: grpc.StatusCode.INTERNAL,
    errors.WorkerCrashed: grpc.StatusCode.INTERNAL,
    errors.WorkerRestarting: grpc.StatusCode.UNAVAILABLE,
    errors.ConfigError: grpc.StatusCode.INTERNAL,
    errors.ModelHostError: grpc.StatusCode.INTERNAL,
}

#: Trailing metadata with the error's code and figures, as ASCII JSON.
ERROR_KEY: Final = "modelhost-error"

#: Clients accept 8 KB of metadata, and see another error than ours where there is more. Characters beyond
#: ASCII travel as three for each of their bytes.
_MAX_TEXT_BYTES: Final = 2048
_MAX_FIGURES_CHARS: Final = 3072


def code_of(error: errors.ModelHostError) -> grpc.StatusCode:
    """Returns the status of an error, by the nearest class in the table."""
    return next(CODES[kind] for kind in type(error).__mro__ if kind in CODES)


def known(error: Exception, method: str) -> errors.ModelHostError:
    """Returns an error of ours for any other, and logs what is a bug.

    Without its traceback: that holds the frames of those who catch it, and with them the request's bytes, in a
    circle that only the collector would find.
    """
    if isinstance(error, errors.ModelHostError):
        return error.with_traceback(None)
    if isinstance(error, MemoryError):
        # The C library refused an allocation: an address-space limit, most likely.
        text = f"{method}: memory could not be allocated: {error}"
        return errors.InsufficientMemory(text, needed_bytes=0, available_bytes=0)
    request_id = request_ids.current()
    log.error("%s failed", method, exc_info=error, extra={"request_id": request_id})
    return errors.ModelHostError(INTERNAL.format(request_id))


def begin(call: Call) -> None:
    """Says that the rest of this task is about this call, which may have a request id in its metadata."""
    sent = (value for name, value in call.invocation_metadata() or () if name == request_ids.HEADER)
    request_ids.begin(next(sent, None))


async def abort(call: Call, error: errors.ModelHostError) -> NoReturn:
    """Ends the call with the error's status, text, figures, and the request's id."""
    request_id = request_ids.current()
    tell(error, request_id)
    metadata = ((ERROR_KEY, figures_of(error)), (request_ids.HEADER, request_id))
    await call.abort(code_of(error), text_of(error), metadata)


def text_of(error: errors.ModelHostError) -> str:
    """Returns what clients are told of an error, as much of it as goes into a status."""
    return shortened(without_paths(str(error)))


def shortened(text: str) -> str:
    """Returns as much of the text as goes into a status."""
    encoded = text.encode(errors="replace")
    limit_bytes = _MAX_TEXT_BYTES if encoded.isascii() else _MAX_TEXT_BYTES // 3
    if len(encoded) <= limit_bytes:
        return encoded.decode()
    return encoded[:limit_bytes].decode(errors="ignore") + "..."


def figures_of(error: errors.ModelHostError) -> str:
    """Returns code and figures as HTTP answers have them, in ASCII; of a long list its beginning."""
    figures = answer_of(error)
    del figures["error"]
    text = json.dumps(figures)
    while len(text) > _MAX_FIGURES_CHARS and figures.get("held_by"):
        figures["held_by"] = figures["held_by"][: len(figures["held_by"]) // 2]
        text = json.dumps(figures)
    if len(text) > _MAX_FIGURES_CHARS:  # a runtime's reason, of which the text of the status has the beginning
        text = json.dumps({"code": error.code})
    return text
