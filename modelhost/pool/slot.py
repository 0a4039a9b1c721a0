"""One model in the pool: its states, the allowed transitions, what it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from modelhost.memory import Recovery, Reservation
from modelhost.pool.key import ModelKey
from modelhost.pool.lease import Lease
from modelhost.pool.runs import ModelRuns
from modelhost.pool.waiter import Waiter
from modelhost.repository import ModelFile
from modelhost.runtime.base import Inspection, LoadedModel


class SlotState(Enum):
    """Where a model stands. A model without a slot is on disk only."""

    QUEUED = "queued"
    """Wanted; not yet decided, or waiting for memory."""
    PREPARING = "preparing"
    """Has a reservation; a child process is opening it for the first time."""
    LOADING = "loading"
    """Has a reservation; the memory thread is loading it."""
    READY = "ready"
    """Grants leases."""
    DRAINING = "draining"
    """Must leave; grants no lease any more and waits for the last one to end."""
    UNLOADING = "unloading"
    """No lease; its memory is on the way back. New requests wait until it has gone, then load it again."""
    GONE = "gone"
    """The slot is out of the pool."""


#: From each state to those that may follow; anything else is a bug and raises.
TRANSITIONS: Final[dict[SlotState, frozenset[SlotState]]] = {
    SlotState.QUEUED: frozenset({SlotState.PREPARING, SlotState.LOADING, SlotState.GONE}),
    SlotState.PREPARING: frozenset({SlotState.QUEUED, SlotState.GONE}),
    SlotState.LOADING: frozenset({SlotState.READY, SlotState.QUEUED, SlotState.GONE}),
    SlotState.READY: frozenset({SlotState.DRAINING, SlotState.UNLOADING}),
    SlotState.DRAINING: frozenset({SlotState.UNLOADING}),
    SlotState.UNLOADING: frozenset({SlotState.QUEUED, SlotState.GONE}),
    SlotState.GONE: frozenset(),
}


@dataclass(eq=False, slots=True)
class Slot:
    """Mutable, and touched by the pool alone, on the event-loop thread."""

    key: ModelKey
    file: ModelFile
    state: SlotState = SlotState.QUEUED
    leases: int = 0
    model: LoadedModel | None = None
    runs: ModelRuns | None = None
    """Where its runs are started, while it is ready."""
    inspection: Inspection | None = None
    reservation: Reservation | None = None
    child_bytes: int | None = None
    """What a child is given to open the model first, where one that was given less did not do."""
    looks: int = 0
    """Children and loads since it was queued that ended in another look at the files."""
    pinned: bool = False
    batching: bool | None = None
    """What its options say of sharing runs."""
    last_used: float = 0.0
    """Unix time of the last lease's grant or end."""
    idle_since: float = 0.0
    """Monotonic time of the end of the last lease, or of the load."""
    blocked_since: float | None = None
    """Monotonic time since when memory alone keeps it queued."""
    waiters: list[Waiter[Lease]] = field(default_factory=list)
    """Requests that want a lease."""
    departures: list[Waiter[Recovery | None]] = field(default_factory=list)
    """Callers of `unload` that wait until the memory is back."""

    def move(self, state: SlotState) -> None:
        """Goes to `state`. Raises RuntimeError where the table does not allow it."""
        if state not in TRANSITIONS[self.state]:
            raise RuntimeError(f"{self.key}: {self.state.value} cannot become {state.value}")
        self.state = state

    @property
    def is_idle(self) -> bool:
        """Ready, and nobody holds a lease."""
        return self.state is SlotState.READY and self.leases == 0

    @property
    def committed_bytes(self) -> int:
        """What it is recorded to hold, or has reserved."""
        return self.reservation.size_bytes if self.reservation is not None else 0
