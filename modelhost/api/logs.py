"""The process's log: text or JSON on standard error, with request ids, and without what requests carry.

Messages of exceptions that nobody expected may repeat any value of a request. Of those their class and their
frames are written, and not their words; messages that are written have no line ends in them, so that nothing in a
request can look like a line of the log.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from types import TracebackType
from typing import Any, Final

import orjson

from modelhost.api import request_ids
from modelhost.config import LoggingSettings

#: What a line of ours may have besides: attributes of its record, and names in JSON.
FIELDS: Final = ("method", "path", "status", "bytes", "ms", "key", "code")

#: Everything below a space, and what some terminals and readers of logs take for the end of a line.
_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160))} | {
    0x0A: "\\n",
    0x0D: "\\r",
    0x09: "\\t",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}

ErrorInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure(settings: LoggingSettings) -> None:
    """Has all of the process log to standard error, as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if settings.format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.level.upper())


class _Formatter(logging.Formatter):
    """What both forms share."""

    def formatException(self, ei: ErrorInfo) -> str:  # noqa: N802 - logging's name for it
        """Returns classes and frames of an exception and of what caused it."""
        parts: list[str] = []
        error = ei[1]
        while error is not None and len(parts) < 5:
            frames = "".join(traceback.format_tb(error.__traceback__))
            parts.append(f"{frames}{type(error).__module__}.{type(error).__qualname__}")
            error = error.__cause__ or error.__context__
        return "\n... which came from\n".join(parts)

    @staticmethod
    def message(record: logging.LogRecord) -> str:
        """Returns the message on one line."""
        return record.getMessage().translate(_CONTROLS)

    @staticmethod
    def request_id(record: logging.LogRecord) -> str | None:
        """Returns the id of the request that a record is about."""
        return getattr(record, "request_id", None) or request_ids.known()


class TextFormatter(_Formatter):
    """Lines for people: `12:00:01 WARNING text [request id]`."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line, and the frames of an exception below it."""
        line = (
            f"{time.strftime('%H:%M:%S', time.localtime(record.created))} {record.levelname:7} {self.message(record)}"
        )
        request_id = self.request_id(record)
        if request_id is not None:
            line += f" [{request_id}]"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(_Formatter):
    """An object a line, for programs."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the object."""
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        entry: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": self.message(record),
        }
        request_id = self.request_id(record)
        if request_id is not None:
            entry["request_id"] = request_id
        entry |= {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(entry).decode()
        except TypeError:  # text that is no Unicode, or a field of another kind
            return orjson.dumps({name: ascii(value) for name, value in entry.items()}).decode()
