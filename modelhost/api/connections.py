"""How many connections there may be, and which one goes where one too many comes.

A newcomer is more likely to be somebody who has work than a connection on which nothing has happened for a while,
or whose request comes so slowly that it holds its place and little else. So such a one is closed first; only where
there is none the newcomer is answered 503. Descriptors are kept back for models and files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import Final, Protocol, TypeVar

from modelhost.config import ServerSettings
from modelhost.errors import ConfigError

#: Connections that may wait for their client to read a refusal, beside those that count.
MAX_LINGERING: Final = 64

#: A connection that has done nothing, or little, for so long goes before a newcomer is refused.
SPARE_AFTER_S: Final = 1.0

#: Descriptors beyond those that are open at the start: models being opened and prepared, files being written, workers.
_KEPT_FILES: Final = 64

#: A flood of newcomers is not each time a reason to look at all connections.
_LOOK_AGAIN_S: Final = 0.1


class Spareable(Protocol):
    """A connection, asked whether it might go; one that lingers is neither idle nor slow."""

    def idle_s(self, now: float) -> float:
        """Returns how long nothing was to be done for it; 0 while there is."""

    def slow_s(self, now: float) -> float:
        """Returns how long it has been sending one request at a pace that nobody would wait for; else 0."""

    def has_unread(self) -> bool:
        """Whether something has come that nobody has read yet, as the process had no time to: it has not idled."""

    def spare(self) -> None:
        """Ends it."""


C = TypeVar("C", bound=Spareable)


class Door:
    """Lets connections in. Event-loop thread."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        """Connections that may be open."""
        self.lingering: set[object] = set()
        """Those that were refused, and wait for their client to read why."""
        self._full_until = 0.0
        self.left: Callable[[], None] = lambda: None
        """Called when a connection has gone."""

    def has_room(self, connections: Collection[C], newcomer: C, now: float) -> bool:
        """Says whether `newcomer`, one of `connections`, may stay; ends another for it where one can be spared."""
        if len(connections) - len(self.lingering) <= self.limit:
            return True
        if now < self._full_until:
            return False
        chosen = _sparest(connections, newcomer, now)
        if chosen is None:
            self._full_until = now + _LOOK_AGAIN_S
            return False
        chosen.spare()
        return True


def _sparest(connections: Collection[C], newcomer: C, now: float) -> C | None:
    """Returns the one that has idled the longest, else the one that has been slow the longest; None where all work."""
    idle_s = slow_s = SPARE_AFTER_S
    idle = slow = None
    for one in connections:
        if one is newcomer:
            continue
        one_s = one.idle_s(now)
        if one_s >= idle_s and not one.has_unread():
            idle, idle_s = one, one_s
        elif idle is None and (one_s := one.slow_s(now)) >= slow_s:
            slow, slow_s = one, one_s
    return idle or slow


def connection_limit(server: ServerSettings) -> int:
    """Returns how many connections there may be: `server.max_connections`, or what the descriptors allow.

    Raises the process's own limit as far as the system lets it. Raises ConfigError where there are none to speak of.
    """
    kinds = 1 if server.grpc_port is None else 2  # each has as many
    open_now = _open_files()
    kept = open_now + _KEPT_FILES + MAX_LINGERING
    allowed = _allow_files(kept + kinds * server.max_connections)
    limit = server.max_connections if allowed is None else min(server.max_connections, (allowed - kept) // kinds)
    if limit < 1:
        raise ConfigError(
            f"this process may open {allowed} files, {open_now} are open and {kept - open_now} are kept for models, "
            f"files and refusals: none is left for connections; raise the limit (ulimit -n) to {kept + kinds} or more"
        )
    return limit


def _allow_files(wanted: int) -> int | None:
    """Raises the soft limit to `wanted` descriptors where the hard one allows it; returns what it is then, None
    where there is none."""
    try:
        import resource
    except ImportError:  # not on Windows
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return None
    if soft < wanted:
        raised = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        if raised > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
            soft = raised
    return soft


def _open_files() -> int:
    """Returns how many descriptors are open now; a guess where nobody says."""
    try:
        return len(os.listdir("/dev/fd"))
    except OSError:
        return 16
