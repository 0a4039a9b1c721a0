"""One request to a webhook: what is sent, how it is signed, and what its answer means."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import http.client
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from modelhost import __version__

SIGNATURE: Final = "X-Modelhost-Signature"

#: Answers that another try may change.
_AGAIN: Final = frozenset({408, 425, 429})

#: Of an answer's body nothing is needed; so much is read, that the peer sees its end.
_READ_BYTES: Final = 4096

#: Longest wait that an answer may ask for.
_MAX_RETRY_AFTER_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. `error` has no part of the URL in it but its host."""

    is_done: bool
    may_try_again: bool = False
    error: str = ""
    retry_after_s: float = 0.0


def sign(body: bytes, secret: bytes) -> str:
    """Returns the value of the header that says who has written a body."""
    return "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest()


class Webhook:
    """Posts JSON to one URL. One thread; blocks.

    TLS is verified as the system does (or `SSL_CERT_FILE` says); no redirect is followed, no proxy asked.
    """

    def __init__(self, url: str, *, secret: bytes | None, timeout_s: float) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        self._is_tls, self._host, self._port = parts.scheme == "https", parts.hostname, parts.port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._secret, self._timeout_s = secret, timeout_s
        self._headers = {
            "Content-Type": "application/json",
            "User-Agent": f"modelhost/{__version__}",
            "Connection": "close",
        }
        if parts.username is not None:
            credentials = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            self._headers["Authorization"] = "Basic " + base64.b64encode(credentials.encode()).decode()
        self._context: ssl.SSLContext | None = None
        self.shown = f"{parts.scheme}://{parts.hostname}" + (f":{parts.port}" if parts.port else "")
        """The URL as it may be logged: its path, too, may be a secret."""

    def post(self, body: bytes) -> Outcome:
        """Sends a body once. Raises nothing."""
        headers = dict(self._headers)
        if self._secret is not None:
            headers[SIGNATURE] = sign(body, self._secret)
        connection: http.client.HTTPConnection | None = None
        try:
            connection = self._connection()
            connection.request("POST", self._target, body, headers)
            answer = connection.getresponse()
            with contextlib.suppress(OSError, http.client.HTTPException):
                answer.read(_READ_BYTES)
        except ssl.SSLCertVerificationError as error:
            return Outcome(False, error=f"its certificate is not trusted: {error.verify_message}")
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            return Outcome(False, may_try_again=True, error=_words(error))
        finally:
            if connection is not None:
                connection.close()
        return _judge(answer.status, answer.headers.get("Retry-After"))

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        if self._context is None:
            self._context = ssl.create_default_context()
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=self._context)


def _judge(status: int, retry_after: str | None) -> Outcome:
    if 200 <= status < 300:
        return Outcome(True)
    if 300 <= status < 400:
        return Outcome(False, error=f"it answered {status}, and redirects are not followed")
    may_try_again = status >= 500 or status in _AGAIN
    wait_s = 0.0
    if may_try_again and retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        wait_s = min(_MAX_RETRY_AFTER_S, float(retry_after))
    return Outcome(False, may_try_again=may_try_again, error=f"it answered {status}", retry_after_s=wait_s)


def _words(error: Exception) -> str:
    """Returns why nothing was answered; the library's own text may have what was sent in it."""
    if isinstance(error, TimeoutError):
        return "it did not answer in time"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return type(error).__name__
