"""What an answer may be, whatever was asked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

#: The errors of status 500 and more that README.md documents for requests, by code: a request may be refused so,
#: and nothing else may go wrong in the host.
DOCUMENTED: Final[Mapping[int, frozenset[str]]] = {
    503: frozenset({"insufficient_memory", "overloaded", "timeout"}),
    507: frozenset({"never_fits"}),
}
#: The shipped models are whole, and what they cannot take is found before a run: these would be a finding.
_LOWEST_FAILURE: Final = 500


def complaint(status: int, headers: Mapping[str, str], body: bytes, *, has_body: bool) -> str | None:
    """Returns what is wrong with an answer, None where nothing is."""
    if not 200 <= status <= 599:
        return f"status {status}"
    kind = headers.get("content-type", "").partition(";")[0]
    is_plain = has_body and "content-encoding" not in headers and "inference-header-content-length" not in headers
    document: object = None
    if is_plain and kind == "application/json":
        try:
            document = json.loads(body)
        except ValueError as error:
            return f"status {status} with a body that is no JSON: {error}"
    if status < 400:
        return None
    if not has_body:
        return f"status {status}" if status == 500 else None
    if not isinstance(document, dict) or not isinstance(document.get("error"), str):
        if status == 503 and isinstance(document, dict) and document.get("ready") is False:
            return None  # not ready is no error
        return f"status {status} without a text of what is wrong"
    found = document.get("code")
    if status >= _LOWEST_FAILURE and found not in DOCUMENTED.get(status, frozenset()):
        return f"status {status}, code {found}"
    return f"an error shows a traceback: {document['error'][:200]}" if "Traceback" in document["error"] else None
