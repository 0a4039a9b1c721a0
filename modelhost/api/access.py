"""Who may ask for what: the roles that a route needs, and the guard in front of all routes.

One table for HTTP and one for gRPC. What is not in them, and changes something, needs `manage`: a route that
somebody adds is closed until it is written down here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from starlette.types import Scope

from modelhost.errors import Forbidden, Unauthenticated
from modelhost.security.keys import Key, Role
from modelhost.security.ring import KeyRing

#: Roles of which a key needs one; None: no key is asked for.
Needs: TypeAlias = frozenset[Role] | None

INFER: Final = frozenset({Role.INFER})
MANAGE: Final = frozenset({Role.MANAGE})
OBSERVE: Final = frozenset({Role.OBSERVE, Role.MANAGE})
ANY: Final = frozenset(Role)

_OPEN: Final = frozenset({"/", "/v2/health/live", "/v2/health/ready"})
_READING: Final = frozenset({"GET", "HEAD"})

#: By the method's name; all others need `manage`.
_CALLS: Final[Mapping[str, Needs]] = {
    "ServerLive": None,
    "ServerReady": None,
    "ServerMetadata": ANY,
    "ModelReady": ANY,
    "ModelMetadata": ANY,
    "ModelConfig": ANY,
    "ModelStatistics": OBSERVE,
    "ModelInfer": INFER,
    "ModelStreamInfer": INFER,
}

_SCHEME: Final = b"bearer"


def needs_of(method: str, path: str) -> Needs:
    """Returns what an HTTP request needs, by its decoded path; the index too has the disk looked at, and so changes
    what is served."""
    is_reading = method in _READING
    if is_reading and path in _OPEN:
        return None
    match path.split("/")[1:]:
        case ["v1" | "v2", "models", *_, last] if not is_reading or last.endswith(":predict"):
            return INFER
        case ["v2", "models", *_, "stats"]:
            return OBSERVE
        case ["v2", "repository", *_]:
            return MANAGE
        case ["memory" | "metrics" | "monitor", *_] | ["v2", "logging", *_]:
            return OBSERVE if is_reading else MANAGE
        case ["docs"] | ["ui", _] if is_reading:  # the pages hold nothing; what they ask for needs a key
            return None
    return ANY if is_reading else MANAGE


def check_origin(scope: Scope) -> None:
    """Refuses to change anything for a page of another site: a browser that can reach the host sends what any page
    wants sent, and says so. Raises Forbidden.

    Those are `POST`s that need no consent of ours (a form's). What is read, a page of elsewhere does not get to see.
    """
    if scope["method"] not in _READING and (b"sec-fetch-site", b"cross-site") in scope["headers"]:
        raise Forbidden("a page of another site (Sec-Fetch-Site: cross-site) changes nothing here", key_name="")


def needs_of_call(method: str) -> Needs:
    """Returns what a gRPC call needs, by the last part of its name."""
    return _CALLS.get(method, MANAGE)


class Guard:
    """Lets in who has a key for what is asked. Decides by a request's head alone. Event-loop thread."""

    def __init__(self, keys: KeyRing) -> None:
        self.keys = keys
        self.refused: Counter[str] = Counter()
        """Requests and calls that were refused, by code."""

    def check(self, scope: Scope) -> Key | None:
        """Returns the key of a request over ASGI, None where none is needed. Raises Unauthenticated and Forbidden."""
        needs = needs_of(scope.get("method", ""), scope["path"])
        return self.admit([value for name, value in scope["headers"] if name == b"authorization"], needs)

    def admit(self, sent: Sequence[bytes], needs: Needs) -> Key | None:
        """Returns the key among the `authorization` values that were sent, None where none is needed.

        Raises Unauthenticated and Forbidden.
        """
        try:
            return self._admit(sent, needs)
        except (Unauthenticated, Forbidden) as error:
            self.refused[error.code] += 1
            raise

    def _admit(self, sent: Sequence[bytes], needs: Needs) -> Key | None:
        if needs is None:
            return None
        if not sent:
            raise Unauthenticated("this host asks for an API key: Authorization: Bearer KEY")
        key = self._key_in(sent[0]) if len(sent) == 1 else None
        if key is None:
            raise Unauthenticated("no API key that is known here was sent: Authorization: Bearer KEY")
        if needs.isdisjoint(key.roles):
            has, wanted = " and ".join(sorted(key.roles)), " or ".join(sorted(needs))
            raise Forbidden(f"the key '{key.name}' is for {has}, this needs {wanted}", key_name=key.name)
        return key

    def key_to_infer(self, sent: bytes | None) -> Key | None:
        """Returns the key of an inference request by its `authorization` value; None where that is not enough, and
        why is `admit`'s to say."""
        key = None if sent is None else self._key_in(sent)
        return key if key is not None and Role.INFER in key.roles else None

    def _key_in(self, sent: bytes) -> Key | None:
        scheme, _, credential = sent.partition(b" ")
        return self.keys.find(credential.strip(b" ")) if scheme.lower() == _SCHEME else None
