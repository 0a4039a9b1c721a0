"""Request ids: the client's where it sends a sane one, else one of ours, made where an error needs one. A request
that goes well has none made for it.
"""

from __future__ import annotations

import re
import secrets
from contextvars import ContextVar
from typing import Final, TypeGuard

HEADER: Final = "x-request-id"
#: As it stands among a request's raw headers.
RAW_HEADER: Final = HEADER.encode()

#: What goes into a header and a line of a log as it is.
_SANE: Final = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")


class _RequestId:
    """The id of one request, once it has one."""

    __slots__ = ("text",)

    def __init__(self, sent: str | None) -> None:
        self.text = sent if _is_sane(sent) else None


_current: ContextVar[_RequestId | None] = ContextVar("request_id", default=None)


def begin(sent: str | None) -> None:
    """Says which request the rest of this task is about, by what the client has sent as its id."""
    _current.set(_RequestId(sent))


def current() -> str:
    """Returns the id of the request that this task is about, the same at every call; a new one outside of any."""
    found = _current.get()
    if found is None:
        return sane_or_new(None)
    if found.text is None:
        found.text = sane_or_new(None)
    return found.text


def known() -> str | None:
    """Returns the id where the request has one already: what is written of it at random needs none made."""
    found = _current.get()
    return None if found is None else found.text


def sane_or_new(sent: str | None) -> str:
    """Returns what was sent where it can stand in a log, else a new id."""
    return sent if _is_sane(sent) else secrets.token_hex(8)


def _is_sane(sent: str | None) -> TypeGuard[str]:
    return sent is not None and _SANE.fullmatch(sent) is not None
