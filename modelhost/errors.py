"""Every error that modelhost raises, ordered as a request meets them.

The classes know causes and figures, not HTTP: `api/errors.py` maps each to a status in one table.
`code` is stable and meant for programs; `details()` are the figures behind the sentence.
"""

from __future__ import annotations

import errno
import math
from typing import Any, ClassVar, Final, Self

from modelhost.units import format_bytes, format_duration

#: What opening a file says for which the process, or the system, has no descriptor left.
NO_DESCRIPTOR: Final = (errno.EMFILE, errno.ENFILE)


class ModelHostError(Exception):
    """Base of everything raised on purpose; `code` names the cause for programs."""

    code: ClassVar[str] = "internal"

    def twin(self) -> Self:
        """Returns the same error without its traceback: several waiters may raise one failure each."""
        twin = type(self).__new__(type(self), *self.args)
        twin.__dict__.update(self.__dict__)
        return twin

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        return {}


# --- start -------------------------------------------------------------------------------------


class ConfigError(ModelHostError):
    """A setting is unknown, malformed, or impossible together with the others."""

    code = "config"


# --- who asks ----------------------------------------------------------------------------------


class Unauthenticated(ModelHostError):
    """Keys are asked for, and the request has none that is known."""

    code = "unauthenticated"


class Forbidden(ModelHostError):
    """The request's key is known, and not for this."""

    code = "forbidden"

    def __init__(self, text: str, *, key_name: str) -> None:
        super().__init__(text)
        self.key_name = key_name


# --- what the client sent ------------------------------------------------------------------------


class InvalidRequest(ModelHostError):
    """The request is not what the protocol or the model expects; the message says which part."""

    code = "invalid_request"


class InvalidTensor(InvalidRequest):
    """A named tensor is not what the model expects."""

    code = "invalid_tensor"

    def __init__(self, tensor: str, *, expected: str, got: str) -> None:
        super().__init__(f"tensor '{tensor}': expected {expected}, got {got}")
        self.tensor, self.expected, self.got = tensor, expected, got

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        return {"tensor": self.tensor, "expected": self.expected, "got": self.got}


class RequestTooLarge(ModelHostError):
    """The body, or what it takes to decode it, is over the configured bound."""

    code = "request_too_large"

    def __init__(self, what: str, *, size_bytes: int, limit_bytes: int, advice: str = "") -> None:
        tail = f"; {advice}" if advice else ""
        super().__init__(
            f"{what} {format_bytes(size_bytes)} ({size_bytes} bytes), "
            f"the limit is {format_bytes(limit_bytes)} ({limit_bytes} bytes){tail}"
        )
        self.size_bytes, self.limit_bytes = size_bytes, limit_bytes

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        return {"size_bytes": self.size_bytes, "limit_bytes": self.limit_bytes}


# --- finding the model ----------------------------------------------------------------------------


class ModelNotFound(ModelHostError):
    """No such model name, or no such version of it, was found in the repository."""

    code = "model_not_found"


class ModelBroken(ModelHostError):
    """The model's files cannot be loaded; carries the reason that the runtime gave."""

    code = "model_broken"

    def __init__(self, name: str, version: str, reason: str) -> None:
        super().__init__(f"model '{name}' version {version} cannot be loaded: {reason}")
        self.name, self.version, self.reason = name, version, reason

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        return {"model": self.name, "version": self.version, "reason": self.reason}


# --- admission --------------------------------------------------------------------------------------


class MemoryRefusal(ModelHostError):
    """Base of the refusals for memory; carries what was asked, what is there, who holds the rest."""

    def __init__(
        self,
        message: str,
        *,
        needed_bytes: int,
        available_bytes: int,
        held_by: tuple[dict[str, Any], ...] = (),
    ) -> None:
        super().__init__(message)
        self.needed_bytes, self.available_bytes, self.held_by = needed_bytes, available_bytes, held_by

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        return {
            "needed_bytes": self.needed_bytes,
            "available_bytes": self.available_bytes,
            "held_by": list(self.held_by),
        }


class InsufficientMemory(MemoryRefusal):
    """There is no memory now; it may fit later."""

    code = "insufficient_memory"


class HeldElsewhere(InsufficientMemory):
    """Another process of the host holds the model, and it does not fit here beside that."""

    def __init__(self, model: str, *, name: str, version: str, seat: int) -> None:
        text = f"{model} is loaded in another process of the host, and does not fit twice"
        super().__init__(text, needed_bytes=0, available_bytes=0)
        self.name, self.version, self.seat = name, version, seat


class ActivationsFull(InsufficientMemory):
    """Other runs hold the memory that this one needed; it fits when they have ended."""


class NeverFits(MemoryRefusal):
    """It would not fit even if everything else left."""

    code = "never_fits"


class RunTooLarge(MemoryRefusal):
    """A run would not fit under the ceiling of activations with nobody else running.

    `max_rows` is the largest batch that fits, None where that is not known.
    """

    code = "run_too_large"

    def __init__(self, what: str, *, needed_bytes: int, available_bytes: int, max_rows: int | None = None) -> None:
        match max_rows:
            case None:
                advice = "send fewer rows at once"
            case 0:
                advice = "not even one row fits"
            case _:
                advice = f"at most {max_rows} {'row fits' if max_rows == 1 else 'rows fit'}"
        super().__init__(f"{what}; {advice}", needed_bytes=needed_bytes, available_bytes=available_bytes)
        self.max_rows = max_rows

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        return {
            "needed_bytes": self.needed_bytes,
            "available_bytes": self.available_bytes,
            "max_rows": self.max_rows,
        }


class Overloaded(ModelHostError):
    """A bounded queue is full, in all or (`model` is given) for one model."""

    code = "overloaded"

    def __init__(
        self, queue: str, *, waiting: int, limit: int, text: str | None = None, model: str | None = None
    ) -> None:
        super().__init__(text or f"{queue} is full: {waiting} waiting, the limit is {limit}")
        self.queue, self.waiting, self.limit, self.model = queue, waiting, limit, model

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        figures = {"queue": self.queue, "waiting": self.waiting, "limit": self.limit}
        return figures if self.model is None else figures | {"model": self.model}


class DeadlineExceeded(ModelHostError):
    """The caller's deadline passed before the work was done, or (`waited_s` 0) before it could begin."""

    code = "timeout"

    def __init__(self, what: str, *, waited_s: float) -> None:
        time = format_duration(waited_s) if waited_s > 0 else "its time, of which nothing was left"
        super().__init__(f"{what} did not finish within {time}")
        self.waited_s = waited_s

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        return {"waited_s": self.waited_s}


class HostClosed(ModelHostError):
    """The host is shutting down, or was never opened."""

    code = "closed"


class HostStarting(ModelHostError):
    """The host is not ready yet: it loads what was to be loaded first."""

    code = "starting"


# --- the run ----------------------------------------------------------------------------------------


class RunFailed(ModelHostError):
    """The model was loaded and its run failed for a reason that is not the input's."""

    code = "run_failed"


class WorkerCrashed(ModelHostError):
    """The process that the model lives in ended while it ran this request."""

    code = "worker_crashed"

    def __init__(self, reason: str) -> None:
        super().__init__(f"the model's worker process ended during the run: {reason}")
        self.reason = reason

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        return {"reason": self.reason}


class WorkerRestarting(ModelHostError):
    """The process that the model lives in has ended, and is not there again yet."""

    code = "worker_restarting"

    def __init__(self, reason: str, *, crashes: int = 1, retry_after_s: float = 1.0) -> None:
        times = "" if crashes <= 1 else f", {crashes} times in a row"
        super().__init__(
            f"the model's worker process has ended{times} ({reason}); it is started again in "
            f"{format_duration(max(0.001, retry_after_s))}"
        )
        self.reason, self.crashes, self.wait_s = reason, crashes, retry_after_s

    def details(self) -> dict[str, Any]:
        """Returns the figures behind the message, ready for JSON."""
        return {"reason": self.reason, "crashes": self.crashes, "retry_after_s": max(1, math.ceil(self.wait_s))}


class UnrepresentableOutput(ModelHostError):
    """An output holds a value that the requested encoding cannot carry."""

    code = "unrepresentable_output"
