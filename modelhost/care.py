"""What an open host sees to by itself: whether memory can be helped, and what has changed on disk."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from modelhost.conditions import Conditions
from modelhost.config import Settings
from modelhost.errors import ConfigError, Overloaded
from modelhost.memory import Level, MemoryManager
from modelhost.memory.board import Figure
from modelhost.outlook import Outlook
from modelhost.pool import Pool
from modelhost.units import format_bytes

log = logging.getLogger("modelhost")

MEMORY_CRITICAL: Final = "memory_critical"
REPOSITORY_UNREADABLE: Final = "repository_unreadable"

#: Runs end, and give back what they hold: what is critical for less is only busy.
CRITICAL_S: Final = 5.0

#: Between two looks at what can be over by itself, such as a disk that was full.
_LOOK_AGAIN_S: Final = 2.0

#: Looking at the disk may take one part in so many of the time.
_WATCH_SHARE: Final = 20


class Care:
    """Notes conditions, and watches the models' directory where the settings want it. Event-loop thread."""

    def __init__(
        self,
        settings: Settings,
        memory: MemoryManager,
        pool: Pool,
        conditions: Conditions,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._memory, self._pool, self._conditions = settings.repository, memory, pool, conditions
        self._clock = clock
        self.outlook = Outlook(memory, pool, conditions, clock=clock)
        self._critical_since: float | None = None
        self._looked_again_at = clock()
        self._looking: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begins."""
        self._memory.on_change(self.look_at_memory)
        self._memory.on_change(self.outlook.look)
        self._memory.on_change(self.look_again)
        if self._settings.watch:
            self._tasks.append(asyncio.get_running_loop().create_task(self._watch()))

    async def stop(self) -> None:
        """Ends; harmless when it has."""
        tasks, self._tasks = self._tasks, []
        if self._looking is not None:
            tasks.append(self._looking)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def look_at_memory(self) -> None:
        """Notes where usage stays critical and nothing is left that could leave; called at every sample."""
        can_evict = self._pool.can_evict or self._memory.siblings.others(Figure.RESTING_SINCE) > 0
        if self._memory.level is not Level.CRITICAL or can_evict:
            self._critical_since = None
            self._conditions.clear(MEMORY_CRITICAL)
        elif self._critical_since is None:
            self._critical_since = self._clock()
        elif self._clock() - self._critical_since >= CRITICAL_S:
            found = self._memory.thresholds
            self._conditions.note(
                MEMORY_CRITICAL,
                f"usage stays above critical ({format_bytes(found.critical_bytes)} of "
                f"{format_bytes(found.limit_bytes)}) and no model is left that could leave",
            )

    def look_again(self) -> None:
        """Asks now and then whether what is not as it should be is over; called at every sample.

        A timer of its own would be another wake-up of an idle host.
        """
        if not self._conditions.has_checks or self._clock() - self._looked_again_at < _LOOK_AGAIN_S:
            return
        if self._looking is None or self._looking.done():
            self._looked_again_at = self._clock()
            looking = self._pool.catalog.on_disk(self._conditions.look_again)
            self._looking = asyncio.get_running_loop().create_task(looking)

    async def _watch(self) -> None:
        took_s = 0.0
        while True:
            await asyncio.sleep(max(self._settings.watch_interval, took_s * _WATCH_SHARE))
            started = self._clock()
            try:
                await self._pool.catalog.scan()
            except (ConfigError, Overloaded) as error:
                self._conditions.note(REPOSITORY_UNREADABLE, str(error))
            else:
                self._conditions.clear(REPOSITORY_UNREADABLE)
            took_s = self._clock() - started
