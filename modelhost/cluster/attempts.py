"""One request until its answer: which replica's refusal is another one's chance, and what a lost replica costs.

Inference, and all else that is asked of one replica, may be done twice without harm. So a request whose replica is gone
is asked again, by its deadline; but not of one after another for ever, since it may be the request that ends them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Collection
from typing import Final, Protocol

from modelhost.cluster.messages import Answered, Asked
from modelhost.errors import DeadlineExceeded, ModelHostError, WorkerCrashed

log = logging.getLogger("modelhost")

#: Codes of 503 that are about one replica, and say nothing of the others. A timeout is about the request.
ELSEWHERE: Final = frozenset({"insufficient_memory", "overloaded", "closed", "starting", "worker_restarting"})

#: One request's lost replicas; a node takes several along, a request that is poison one after another.
MOST_LOST: Final = 3

#: How often a request may find nobody at the other end: the first sign of most losses, and of a network that is cut.
MOST_UNREACHED: Final = 10

#: Between a loss and the next attempt: twice as long each time. The first notices of a node's end come in this time.
_PAUSE_S: Final = 0.05
_LONGEST_PAUSE_S: Final = 1.0

_MAX_REFUSAL_BYTES: Final = 64 << 10


class ReplicaLost(Exception):
    """The replica that was asked is gone, or cannot be reached (`is_gone` is false); whether it has done what it was
    asked is not known."""

    def __init__(self, text: str, *, is_gone: bool = True) -> None:
        super().__init__(text)
        self.is_gone = is_gone


class Replicas(Protocol):
    """The host's replicas, wherever they are."""

    async def ask(self, model: str, asked: Asked, body: bytes, refused_by: Collection[str]) -> Answered | None:
        """Asks one that is not among `refused_by`, as long as there is one; None where all are.

        Waits where there is none at all. Raises ReplicaLost, and ModelHostError where there is nobody to wait for.
        """

    async def ask_all(self, asked: Asked, body: bytes, *, timeout_s: float) -> list[Answered]:
        """Asks each that is there; returns the answers of those that give one in time."""


def is_elsewhere(answer: Answered) -> bool:
    """Says whether another replica may answer better: this one has no room, or takes no work."""
    if answer.status != 503 or len(answer.body) > _MAX_REFUSAL_BYTES:
        return False
    try:
        said = json.loads(answer.body)
    except ValueError:
        return False
    return isinstance(said, dict) and said.get("code") in ELSEWHERE


async def answer(replicas: Replicas, model: str, asked: Asked, body: bytes, *, timeout_s: float) -> Answered:
    """Returns the answer of the first replica that does not refuse for want of room; where all do, the last refusal.

    Raises DeadlineExceeded, WorkerCrashed where one replica after another was lost, and what `Replicas.ask` raises.
    """
    loop = asyncio.get_running_loop()
    started, lost, unreached, refusal, refused_by = loop.time(), 0, 0, None, set[str]()
    while True:
        try:
            async with asyncio.timeout_at(started + timeout_s):
                found = await replicas.ask(model, asked, body, frozenset(refused_by))
        except TimeoutError:
            if refusal is not None:
                return refusal
            raise DeadlineExceeded("the request", waited_s=loop.time() - started) from None
        except ReplicaLost as error:
            lost, unreached = lost + error.is_gone, unreached + (not error.is_gone)
            log.warning("a replica was lost while it was asked for %s: %s", asked.path, error)
            if lost >= MOST_LOST or unreached >= MOST_UNREACHED:
                times = f"{lost} replicas were lost while they had it, {unreached} times one could not be reached"
                raise WorkerCrashed(times) from None
            pause_s = min(_PAUSE_S * 2 ** (lost + unreached), _LONGEST_PAUSE_S)
            await asyncio.sleep(min(pause_s, max(0.0, started + timeout_s - loop.time())))
            continue
        except ModelHostError:
            if refusal is not None:
                return refusal
            raise
        if found is None:
            if refusal is None:
                raise DeadlineExceeded("finding a replica", waited_s=loop.time() - started)
            return refusal
        if not is_elsewhere(found) or found.replica in refused_by:
            return found
        refusal = found
        refused_by.add(found.replica)
