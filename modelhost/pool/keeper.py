"""Keeps what a host has counted or learnt from one start to the next: in the background, never in a request's way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from modelhost import files
from modelhost.conditions import Conditions
from modelhost.kept import InUse, KeptFile
from modelhost.pool.catalog import Catalog
from modelhost.pool.key import ModelKey
from modelhost.pool.statistics import ModelStatistics, Statistics

T = TypeVar("T")

log = logging.getLogger("modelhost")

#: Models whose totals are collected in one turn of the event loop: some 5 microseconds each.
_MODELS_A_TURN: Final = 64


class Keeper:
    """Event-loop thread; files are read and written on the catalog's disk thread.

    `collect` gives the rows. A disk that takes nothing is a condition and tried again; the host goes on meanwhile.
    """

    def __init__(
        self,
        file: KeptFile,
        collect: Callable[[], Awaitable[list[bytes]]],
        catalog: Catalog,
        *,
        interval_s: float,
        conditions: Conditions,
    ) -> None:
        self._file, self._collect, self._catalog = file, collect, catalog
        self._interval_s, self._conditions = interval_s, conditions
        self._condition = f"{file.name}_unwritten"
        self._is_given_up = False
        self._task: asyncio.Task[None] | None = None

    async def read(self) -> list[dict[str, Any]]:
        """Returns what the host before this one has written."""
        return await self._catalog.on_disk(lambda: self._attempt(self._file.read) or [])

    def start(self) -> None:
        """Writes every interval from here on."""
        self._task = asyncio.get_running_loop().create_task(self._write_at_intervals())

    async def stop(self) -> None:
        """Ends that; what is being written is waited for."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    def finish(self, rows: list[bytes]) -> None:
        """Writes a last time, when nothing changes any more; blocks."""
        self._write(rows)
        self._file.close()

    async def _write_at_intervals(self) -> None:
        while not self._is_given_up:
            await asyncio.sleep(self._interval_s)
            try:
                rows = await self._collect()
                await self._catalog.on_disk(partial(self._write, rows))
            except Exception:  # without this task nothing would be kept any more
                log.exception("%s were not written", self._file.what)

    def _write(self, rows: list[bytes]) -> None:
        self._attempt(lambda: self._file.write(rows))

    def _attempt(self, work: Callable[[], T]) -> T | None:
        """Does what reads or writes the file; what the disk says against it is noted, not raised."""
        if self._is_given_up:
            return None
        what = self._file.what
        try:
            result = work()
        except InUse as reason:
            self._is_given_up = True
            log.info("%s begin anew and are not kept: %s", what, reason)
        except OSError as error:
            if error.errno in files.READ_ONLY:
                self._is_given_up = True
                log.info("%s are not kept: %s: %s", what, self._file.folder, error.strerror)
            else:
                reason_text = os.strerror(error.errno or 0)
                self._conditions.note(
                    self._condition, f"{what} go on, and a restart would forget the last ones: {reason_text}"
                )
        else:
            self._conditions.clear(self._condition)
            return result
        return None


class StatisticsKeeper:
    """The totals of requests, of models that are still there. Event-loop thread."""

    def __init__(
        self,
        statistics: Statistics,
        file: KeptFile,
        catalog: Catalog,
        *,
        interval_s: float,
        conditions: Conditions,
    ) -> None:
        self._statistics, self._catalog = statistics, catalog
        self._keeper = Keeper(file, self._collect, catalog, interval_s=interval_s, conditions=conditions)
        self.start, self.stop = self._keeper.start, self._keeper.stop

    async def restore(self) -> None:
        """Takes up what the host before this one has written, of models that are still there."""
        for row in await self._keeper.read():
            with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # one row less
                key = ModelKey(str(row["name"]), str(row["version"]))
                if self._catalog.has(key):
                    self._statistics.restore(key, ModelStatistics.from_table(row))

    def finish(self) -> None:
        """Writes a last time, when nothing is counted any more; blocks."""
        self._keeper.finish([_line(key, found) for key, found in self._statistics])

    async def _collect(self) -> list[bytes]:
        """Returns the totals of all models; each model's are of one moment."""
        rows = []
        for number, (key, found) in enumerate(list(self._statistics)):
            if number % _MODELS_A_TURN == _MODELS_A_TURN - 1:
                await asyncio.sleep(0)
            rows.append(_line(key, found))
        return rows


def statistics_file(folder: Path) -> KeptFile:
    """Returns where the totals of requests lie in the host's folder for such."""
    return KeptFile(folder, "statistics", what="statistics", lock="lock")


def _line(key: ModelKey, found: ModelStatistics) -> bytes:
    return found.to_line(name=key.name, version=key.version)
