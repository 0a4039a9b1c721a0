"""What the memory managers of a host's processes do with each other: figures go on the board, idle models leave for
another one's load, and the baseline is that of all.

Of a host that is one process nothing here does anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

from modelhost.memory.board import Figure, Seat, Siblings
from modelhost.memory.ledger import LedgerTotals

_MEETING_LOOK_S: Final = 0.01


class Sharing:
    """One process's part in it. Event-loop thread.

    `free` has so many bytes of idle models leave, `look_again` is called where there may be room now, `is_changing`
    says whether a load or a clean-up is in progress, and `spawn` begins work that the manager waits for at its end.
    """

    def __init__(
        self,
        siblings: Siblings,
        *,
        free: Callable[[int], Awaitable[object]],
        look_again: Callable[[], None],
        is_changing: Callable[[], bool],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        self.siblings = siblings
        self.read_idle: Callable[[], tuple[int, float | None]] = lambda: (0, None)
        """What models hold that could leave, and since when the one rests that has rested longest (monotonic)."""
        self._free, self._look_again, self._is_changing, self._spawn = free, look_again, is_changing, spawn
        self._is_wanting = False

    # --- the beginning, and the end ------------------------------------------------------------------

    async def meet(self) -> None:
        """Waits until all processes of the host are there, without a model: the baseline is that of all of them.

        One that starts again finds the baseline that was measured then.
        """
        if not isinstance(self.siblings, Seat):
            return
        board = self.siblings.board
        self.siblings.publish(Figure.IS_UP, 1)
        # Whoever does not come ends the host, see the supervisor.
        while not board.baseline_bytes and not board.is_full:  # noqa: ASYNC110 - the others have no event of ours
            await asyncio.sleep(_MEETING_LOOK_S)

    def group_baseline(self, usage_bytes: int) -> int:
        """Returns the baseline of all processes: measured once, when all of them are there and none has models."""
        if not isinstance(self.siblings, Seat):
            return usage_bytes
        board = self.siblings.board
        with board.locked():
            if not board.baseline_bytes:
                board.baseline_bytes = usage_bytes
        return board.baseline_bytes

    def open(self) -> None:
        """Hears the others from here on."""
        if isinstance(self.siblings, Seat):
            asyncio.get_running_loop().add_reader(self.siblings.board.pokes(self.siblings.number), self._poked)

    def close(self) -> None:
        """Hears them no more."""
        if isinstance(self.siblings, Seat):
            asyncio.get_running_loop().remove_reader(self.siblings.board.pokes(self.siblings.number))

    # --- telling them --------------------------------------------------------------------------------

    def publish_claims(self, totals: LedgerTotals) -> None:
        """Lets the others know what is claimed here."""
        if self.siblings.is_alone:
            return
        self.siblings.publish(Figure.LOADING, totals.loading_bytes)
        self.siblings.publish(Figure.RESIDENT, totals.resident_bytes)
        self.siblings.publish(Figure.LEAVING, totals.leaving_bytes)

    def publish_idle(self) -> None:
        """Lets the others know what could leave here."""
        if self.siblings.is_alone:
            return
        evictable_bytes, since = self.read_idle()
        self.siblings.publish(Figure.EVICTABLE, evictable_bytes)
        self.siblings.publish(Figure.RESTING_SINCE, 0 if since is None else max(1, int(since * 1e9)))

    def want(self, size_bytes: int) -> None:
        """Has the others let go of so much that is idle there; 0: nothing is wanted any more.

        They are told when it begins, and look again at each sample: two that wait for each other, and told each other
        of each look, would do nothing else.
        """
        if self.siblings.is_alone:
            return
        is_new = size_bytes > 0 and not self._is_wanting
        self._is_wanting = size_bytes > 0
        self.siblings.publish(Figure.WANTED, size_bytes)
        if is_new:
            self.siblings.poke()

    # --- hearing them --------------------------------------------------------------------------------

    @property
    def loading_bytes(self) -> int:
        """What the others' loads have reserved."""
        return self.siblings.others(Figure.LOADING)

    def help(self) -> None:
        """Lets go of what another one waits for, where that is this process's turn."""
        if not self.siblings.is_alone and self.siblings.wanted_bytes() and not self._is_changing():
            self._spawn(self._give())

    async def _give(self) -> None:
        if not self._is_changing():
            await self._free(self.siblings.wanted_bytes())

    def _poked(self) -> None:
        """Something has changed on the board: what waits here may go, and others may wait for what is idle here."""
        assert isinstance(self.siblings, Seat)
        self.siblings.board.hear(self.siblings.number)
        self.siblings.publish(Figure.WAITS, 0)  # who still has to wait says so again
        self.publish_idle()  # whether it helps goes by that, too
        self.help()
        self._look_again()
