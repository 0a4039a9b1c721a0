"""Keeps the totals of requests from one start to the next: written in the background, never in a request's way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from modelhost import files
from modelhost.conditions import Conditions
from modelhost.pool.catalog import Catalog
from modelhost.pool.kept_statistics import InUse, StatisticsFile
from modelhost.pool.key import ModelKey
from modelhost.pool.statistics import ModelStatistics, Statistics

T = TypeVar("T")

log = logging.getLogger("modelhost")

#: Models whose totals are collected in one turn of the event loop: some 5 microseconds each.
_MODELS_A_TURN: Final = 64

_CONDITION: Final = "statistics_unwritten"


class StatisticsKeeper:
    """Event-loop thread; files are read and written on the catalog's disk thread.

    A disk that takes nothing is a condition and tried again; totals count on meanwhile.
    """

    def __init__(
        self,
        statistics: Statistics,
        file: StatisticsFile,
        catalog: Catalog,
        *,
        interval_s: float,
        conditions: Conditions,
    ) -> None:
        self._statistics, self._file, self._catalog = statistics, file, catalog
        self._interval_s, self._conditions = interval_s, conditions
        self._is_given_up = False
        self._task: asyncio.Task[None] | None = None

    async def restore(self) -> None:
        """Takes up what the host before this one has written, of models that are still there."""
        rows = await self._catalog.on_disk(lambda: self._attempt(self._file.read) or [])
        for row in rows:
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # one row less
                key = ModelKey(str(row["name"]), str(row["version"]))
                if self._catalog.has(key):
                    self._statistics.restore(key, ModelStatistics.from_table(row))

    def start(self) -> None:
        """Writes every interval from here on."""
        self._task = asyncio.get_running_loop().create_task(self._write_at_intervals())

    async def stop(self) -> None:
        """Ends that; what is being written is waited for."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def finish(self) -> None:
        """Writes a last time, when nothing is counted any more; blocks."""
        self._write([_line(key, found) for key, found in self._statistics])
        self._file.close()

    async def _write_at_intervals(self) -> None:
        while not self._is_given_up:
            await asyncio.sleep(self._interval_s)
            try:
                rows = await self._collect()
                await self._catalog.on_disk(partial(self._write, rows))
            except Exception:  # without this task nothing would be kept any more
                log.exception("statistics were not written")

    async def _collect(self) -> list[bytes]:
        """Returns the totals of all models; each model's are of one moment."""
        rows = []
        for number, (key, found) in enumerate(list(self._statistics)):
            if number % _MODELS_A_TURN == _MODELS_A_TURN - 1:
                await asyncio.sleep(0)
            rows.append(_line(key, found))
        return rows

    def _write(self, rows: list[bytes]) -> None:
        self._attempt(lambda: self._file.write(rows))

    def _attempt(self, work: Callable[[], T]) -> T | None:
        """Does what reads or writes the file; what the disk says against it is noted, not raised."""
        if self._is_given_up:
            return None
        try:
            result = work()
        except InUse as reason:
            self._is_given_up = True
            log.info("statistics begin at 0 and are not kept: %s", reason)
        except OSError as error:
            if error.errno in files.READ_ONLY:
                self._is_given_up = True
                log.info("statistics are not kept: %s: %s", self._file.folder, error.strerror)
            else:
                reason_text = os.strerror(error.errno or 0)
                self._conditions.note(
                    _CONDITION, f"totals go on, and a restart would forget the last ones: {reason_text}"
                )
        else:
            self._conditions.clear(_CONDITION)
            return result
        return None


def _line(key: ModelKey, found: ModelStatistics) -> bytes:
    return found.to_line(name=key.name, version=key.version)
