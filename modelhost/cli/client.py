"""A few requests to a running host, with the standard library's client."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

import click


def request(url: str, path: str, body: Any = None, *, timeout_s: float = 120.0) -> Any:
    """Returns the answer's JSON. Raises click.ClickException that says what to do next."""
    data = None if body is None else json.dumps(body).encode()
    message = urllib.request.Request(url.rstrip("/") + path, data=data, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(message, timeout=timeout_s) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise click.ClickException(f"{error.code}: {_error_text(error)}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise click.ClickException(
            f"no host answers at {url} ({reason}); start one with `modelhost serve`, or name it with --url"
        ) from None


def _error_text(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["error"])
    except (ValueError, KeyError, TypeError):
        return error.reason
