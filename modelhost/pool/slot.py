"""One model in the pool: its states, the allowed transitions, what it holds."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from modelhost.config import ModelOptions
from modelhost.errors import ModelHostError
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
    TRIAL = "trial"
    """Loaded beside what it will replace; runs once before it serves anybody."""
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
    SlotState.LOADING: frozenset({SlotState.READY, SlotState.TRIAL, SlotState.QUEUED, SlotState.GONE}),
    SlotState.TRIAL: frozenset({SlotState.READY, SlotState.UNLOADING}),
    SlotState.READY: frozenset({SlotState.DRAINING, SlotState.UNLOADING}),
    SlotState.DRAINING: frozenset({SlotState.UNLOADING}),
    SlotState.UNLOADING: frozenset({SlotState.QUEUED, SlotState.GONE}),
    SlotState.GONE: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Refused:
    """A change of a model's files that is not served, and why."""

    stamp: tuple[int, ...]
    options: ModelOptions
    error: ModelHostError


@dataclass(eq=False, slots=True)
class Slot:
    """Mutable, and touched by the pool alone, on the event-loop thread."""

    key: ModelKey
    file: ModelFile
    options: ModelOptions = field(default_factory=ModelOptions)
    """As they were when it was made: its own, with the settings' on top."""
    stamp: tuple[int, ...] = ()
    """What its files were before they were looked at; see Runtime.stamp."""
    successor: Slot | None = None
    """The same model from other files or options, on its way to take this one's place."""
    predecessor: Slot | None = None
    """The opposite."""
    is_wanted: bool = False
    """Whether it is to be loaded though no request waits for it: a version that nobody has opened yet."""
    is_predicted: bool = False
    """Whether it was queued because it will likely be wanted, and no request asked for it."""
    refused: Refused | None = None
    """The last change of its files, where that came to nothing. It is not evicted then: it could not come back."""
    state: SlotState = SlotState.QUEUED
    leases: int = 0
    model: LoadedModel | None = None
    runs: ModelRuns | None = None
    """Where its runs are started, while it is ready."""
    inspection: Inspection | None = None
    reservation: Reservation | None = None
    tried_bytes: int = 0
    """What a child had to open the model with, and was not enough; 0 where none has tried."""
    looks: int = 0
    """Children and loads since it was queued that ended in another look at the files."""
    pinned: bool = False
    last_used: float = 0.0
    """Unix time of the last lease's grant or end."""
    idle_since: float = 0.0
    """Monotonic time of the end of the last lease, or of the load."""
    load_s: float = 0.0
    """What its load took."""
    worth: float | None = None
    """See `worth.py`; None: not worked out since the load."""
    runs_before: int = 0
    """Runs of the model before this load, as its statistics count them."""
    runs_valued: int = 0
    """Those at the time that its worth was last worked out."""
    blocked_since: float | None = None
    """Monotonic time since when memory alone keeps it queued."""
    wanted_bytes: int = 0
    """What it waits for, where memory alone keeps it queued: other processes of the host may let go of so much."""
    waits_for_sibling: bool = False
    """Whether it was to be opened for the first time while another process of the host did so with some model."""
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
    def is_needed(self) -> bool:
        """Whether anything would come of its load."""
        return bool(self.waiters) or self.is_wanted or self.predecessor is not None or self.is_predicted

    @property
    def is_unproven(self) -> bool:
        """Whether it has to run once before it serves: others still answer in its place."""
        return self.is_wanted or self.predecessor is not None

    @property
    def is_unused(self) -> bool:
        """Whether it was loaded, or is to be, for a prediction that nobody has used yet."""
        return self.is_predicted and not self.last_used and not self.waiters

    @property
    def is_kept(self) -> bool:
        """Whether it never leaves to make room."""
        return self.pinned or self.refused is not None

    @property
    def committed_bytes(self) -> int:
        """What it is recorded to hold, or has reserved."""
        return self.reservation.size_bytes if self.reservation is not None else 0
