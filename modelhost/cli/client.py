"""A few requests to a running host, with the standard library's client."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any, Final

import click

_VARIABLE: Final = "MODELHOST_API_KEY"

#: What helps where a key is what is missing.
_ADVICE: Final = {
    401: f"give a key in {_VARIABLE} or with --api-key-file; who runs the host makes one with `modelhost keys new`",
    403: "ask who runs the host for a key that is for this (`modelhost keys new NAME --role ROLE`)",
}


class RequestFailed(click.ClickException):
    """A request that came to nothing, with what to do next; `status` is the host's answer, None where none came."""

    def __init__(self, text: str, *, status: int | None = None) -> None:
        super().__init__(text)
        self.status = status


def api_key(file: Path | None) -> str | None:
    """Returns the key of a file, or of the environment where none is named. Raises click.ClickException."""
    if file is None:
        where, text = _VARIABLE, os.environ.get(_VARIABLE, "").strip()
        if not text:
            return None
    else:
        where = str(file)
        try:
            text = file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise click.ClickException(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    words = text.split()
    if len(words) != 1 or not text.isascii():  # the library that sends it would show it in its complaint
        raise click.ClickException(f"{where}: expected an API key and nothing else, got {len(words)} words")
    return text


def request(url: str, path: str, body: Any = None, *, key: str | None = None, timeout_s: float = 120.0) -> Any:
    """Returns the answer's JSON. Raises RequestFailed."""
    data = None if body is None else json.dumps(body).encode()
    message = urllib.request.Request(url.rstrip("/") + path, data=data, headers={"Content-Type": "application/json"})
    if key is not None:
        message.add_unredirected_header("Authorization", f"Bearer {key}")  # it is for this host and for no other
    try:
        with urllib.request.urlopen(message, timeout=timeout_s) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        advice = f"; {_ADVICE[error.code]}" if error.code in _ADVICE else ""
        raise RequestFailed(f"{error.code}: {_error_text(error)}{advice}", status=error.code) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in str(reason):
            text = f"the certificate of {url} is signed by nobody that is trusted here; name its file in SSL_CERT_FILE"
            raise RequestFailed(text) from None
        raise RequestFailed(
            f"no host answers at {url} ({reason}); start one with `modelhost serve`, or name it with --url"
        ) from None


def _error_text(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return error.reason
