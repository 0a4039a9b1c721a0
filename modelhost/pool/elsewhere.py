"""Models that do not fit here, as other processes of the host hold them: who asks for one is sent there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from modelhost.errors import HeldElsewhere
from modelhost.memory.board import Siblings
from modelhost.pool.key import ModelKey

#: A decision counts for so long, as long as the model is where it was; then it is looked again whether there is room.
_COUNTS_S: Final = 1.0

#: Models that are remembered.
_KEPT: Final = 1024


class Elsewhere:
    """What was decided of late. Event-loop thread; asks nobody but the board."""

    def __init__(self, siblings: Siblings, clock: Callable[[], float]) -> None:
        self._siblings, self._clock = siblings, clock
        self._until: dict[ModelKey, float] = {}

    def holder(self, key: ModelKey) -> HeldElsewhere | None:
        """Returns what sends requests to the process that holds a model; None where none does."""
        seat = self._siblings.holder(str(key))
        return None if seat is None else HeldElsewhere(str(key), name=key.name, version=key.version, seat=seat)

    def note(self, key: ModelKey) -> None:
        """Remembers that a model does not fit here."""
        if len(self._until) >= _KEPT:
            self._until.clear()
        self._until[key] = self._clock() + _COUNTS_S

    def forget(self, key: ModelKey) -> None:
        """Has it decided anew whether a model fits: where it was it is not any more."""
        self._until.pop(key, None)

    def recent(self, key: ModelKey) -> HeldElsewhere | None:
        """Returns what sends requests away of a model that did not fit here a moment ago; None for others."""
        until = self._until.get(key)
        if until is None:
            return None
        held = self.holder(key) if self._clock() < until else None
        if held is None:
            del self._until[key]
        return held
