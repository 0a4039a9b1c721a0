"""Which models there are: the repository's index, kept fresh, with the settings' options on top."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TypeVar

from modelhost.config import ModelOptions, ModelsSettings
from modelhost.errors import ModelNotFound
from modelhost.pool.key import ModelKey
from modelhost.repository import ModelFile, Repository

T = TypeVar("T")

#: Look-ups remembered: making a path object is the dearest part of one.
_FOUND_KEPT = 1024

#: A look-up that finds nothing scans again, at most this often, and …
_RESCAN_MIN_S = 1.0
#: … at most for this share of the time: a scan of 10,000 folders takes a second or so.
_RESCAN_SHARE = 1 / 20


class Catalog:
    """Finds models by name. Event-loop thread; scans run on `executor`."""

    def __init__(
        self,
        repository: Repository,
        settings: ModelsSettings,
        executor: Executor,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository = repository
        self._settings = settings
        self._executor = executor
        self._clock = clock
        self._next_scan = 0.0
        self._found: dict[tuple[str, str | None], ModelFile] = {}
        self.known_keys: dict[tuple[str, str | None], ModelKey] = {}
        """Which model a name and a version mean, for those that were found since the last scan."""
        self._scan: asyncio.Future[None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all models that can be served, sorted."""
        return tuple(self._repository.names())

    @property
    def problems(self) -> Mapping[str, str]:
        """What was found broken: name to reason."""
        return self._repository.problems

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model, lowest first. Raises ModelNotFound."""
        return self._repository.versions(name)

    def find(self, name: str, version: str | None = None) -> ModelFile:
        """Looks a model up; the highest version by default. Raises ModelNotFound or ModelBroken."""
        file = self._found.get((name, version))
        if file is None:
            file = self._repository.find(name, version)
            if len(self._found) >= _FOUND_KEPT:
                self._forget()
            self._found[name, version] = file
            self.known_keys[name, version] = ModelKey.of(file)
        return file

    def known(self, target: tuple[str, str | None]) -> ModelFile | None:
        """Looks a model up that was found before; None for another one, which need not mean that there is none."""
        return self._found.get(target)

    def options(self, file: ModelFile) -> ModelOptions:
        """The model's own options with the settings' on top, key by key; a name among the pins is pinned."""
        return self._settings.options_for(file.name, file.options)

    async def find_fresh(self, name: str, version: str | None = None) -> ModelFile:
        """Like `find`, but looks at the disk again, within reason, before it says that there is none."""
        try:
            return self.find(name, version)
        except ModelNotFound:
            if self._clock() < self._next_scan:
                raise
        await self.scan()
        return self.find(name, version)

    async def scan(self) -> None:
        """Looks at the disk again. Calls that overlap share a scan, but never one that had begun before."""
        if self._scan is not None:
            begun = self._scan
            await asyncio.wait([begun])
            if self._scan is not None and self._scan is not begun:  # another caller was first
                return await asyncio.shield(self._scan)
        self._scan = asyncio.get_running_loop().run_in_executor(self._executor, self._scan_timed)
        self._scan.add_done_callback(self._scanned)
        return await asyncio.shield(self._scan)

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Runs `work`, which reads files, on the disk thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _forget(self) -> None:
        self._found.clear()
        self.known_keys.clear()

    def _scan_timed(self) -> None:
        started = self._clock()
        self._repository.scan()
        took_s = self._clock() - started
        self._next_scan = self._clock() + max(_RESCAN_MIN_S, took_s / _RESCAN_SHARE)

    def _scanned(self, scan: asyncio.Future[None]) -> None:
        if self._scan is scan:
            self._scan = None
        self._forget()  # on the loop, where look-ups fill it
        if not scan.cancelled():
            scan.exception()  # the callers that wait have it; without any it is not worth a warning
