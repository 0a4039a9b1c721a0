"""Which models there are: the repository's index, kept fresh, with the settings' options on top.

What is served can differ from what is on disk for a while: a version whose files are being replaced, and
the default version of a model while a newer one has not been opened yet. Both are said from outside
(`keep`, `hold`); see changes.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import TypeVar

from modelhost.config import ModelOptions, ModelsSettings, VersionPolicy
from modelhost.config.fields import Isolation
from modelhost.errors import ModelBroken, ModelHostError, ModelNotFound
from modelhost.pool.descriptors import none_left
from modelhost.pool.key import ModelKey
from modelhost.repository import Index, ModelFile, Repository

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
        self.before_scan_counts: Callable[[], None] = lambda: None
        self.after_scan: Callable[[], None] = lambda: None
        """Called on both sides of the step that makes what a scan has found known."""
        self._pins: dict[str, bool] = {}
        self._held: dict[str, str] = {}
        self._kept: dict[ModelKey, ModelFile] = {}
        self._scan: asyncio.Future[Index] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all models that can be served, sorted."""
        found = self._repository.names()
        kept = {key.name for key in self._kept if key.name not in self._repository}
        return tuple(sorted({*found, *kept})) if kept else found

    @property
    def problems(self) -> Mapping[str, str]:
        """What was found broken: name to reason."""
        return self._repository.problems

    def versions(self, name: str) -> tuple[str, ...]:
        """The versions of a model that are served, lowest first. Raises ModelNotFound or ModelBroken."""
        kept = self._kept_versions(name)
        try:
            on_disk = self._repository.versions(name)
        except ModelHostError:
            if kept:
                return tuple(sorted(kept, key=int))
            raise
        served = {*self.policy(name).choose(on_disk), *kept}
        if name in self._held:
            served.add(self._held[name])
        return tuple(sorted(served, key=int))

    def has(self, key: ModelKey) -> bool:
        """Says whether a version is served."""
        try:
            return key.version in self.versions(key.name)
        except (ModelNotFound, ModelBroken):
            return False

    def find(self, name: str, version: str | None = None) -> ModelFile:
        """Looks a model up; where no version is named, the highest one that is served, or what `hold` says.

        Raises ModelNotFound or ModelBroken.
        """
        file = self._found.get((name, version))
        if file is None:
            file = self._look_up(name, version)
            if len(self._found) >= _FOUND_KEPT:
                self._forget()
            self._found[name, version] = file
            self.known_keys[name, version] = ModelKey.of(file)
        return file

    def newest(self, name: str) -> str:
        """Returns the highest version that the disk and the policy have. Raises ModelNotFound or ModelBroken."""
        served = self.policy(name).choose(self._repository.versions(name))
        if not served:
            raise self._left_out(name, None)
        return served[-1]

    def known(self, target: tuple[str, str | None]) -> ModelFile | None:
        """Looks a model up that was found before; None for another one, which need not mean that there is none."""
        return self._found.get(target)

    def options(self, file: ModelFile) -> ModelOptions:
        """The model's own options with the settings' on top, key by key; `pin` has the last word on what is pinned."""
        options = self._settings.options_for(file.name, file.options)
        pinned = self._pins.get(file.name, options.pinned)
        return options if pinned is options.pinned else options.model_copy(update={"pinned": pinned})

    def pin(self, name: str, *, pinned: bool) -> None:
        """Pins a model, or has it leave as others do, whatever the settings say: until the process ends."""
        self._pins[name] = pinned

    def has_isolated(self, default: Isolation) -> bool:
        """Whether any model is to live in a worker process; `default` is for those whose options say nothing."""
        stated, nothing = self._repository.stated_options, ModelOptions()
        names = {*stated, *self._settings.options}
        options = (self._settings.options_for(name, stated.get(name, nothing)) for name in names)
        return default == "process" or any(found.isolation == "process" for found in options)

    def policy(self, name: str) -> VersionPolicy:
        """Returns which of a model's versions are served."""
        options = self._settings.options_for(name, self._repository.options(name))
        return options.version_policy or self._settings.version_policy

    def use(self, settings: ModelsSettings) -> None:
        """Has other settings from here on."""
        self._settings = settings
        self._forget()

    # --- what is served though the disk says something else --------------------------------------------

    @property
    def held(self) -> Mapping[str, str]:
        """The versions that are the default of their model though there are newer ones."""
        return self._held

    def hold(self, name: str, version: str | None) -> None:
        """Makes a version the default one until it is released, with None."""
        if self._held.get(name) != version:
            if version is None:
                del self._held[name]
            else:
                self._held[name] = version
            self._forget()

    def keep(self, file: ModelFile) -> None:
        """Has a version found though its files cannot be served any more: it is loaded."""
        self._kept[ModelKey.of(file)] = file
        self._forget()

    def unkeep(self, key: ModelKey) -> None:
        """Ends `keep`; harmless where there is nothing to end."""
        if self._kept.pop(key, None) is not None:
            self._forget()

    def is_kept(self, key: ModelKey) -> bool:
        """Whether `keep` has it found."""
        return key in self._kept

    def fault(self, key: ModelKey) -> ModelHostError | None:
        """Returns why the disk and the policy would not have a version served; None where they would."""
        try:
            self._repository.find(*key)
            self._check_policy(*key)
        except ModelHostError as error:
            return error
        return None

    def is_absent(self, key: ModelKey) -> bool:
        """Whether nothing of a version is on disk, or the policy leaves it out."""
        return self._repository.is_absent(*key) or isinstance(self.fault(key), ModelNotFound)

    # --- scans -----------------------------------------------------------------------------------------

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
        """Looks at the disk again. Calls that overlap share a scan, but never one that had begun before.

        Raises ConfigError where the models' directory cannot be read, Overloaded where no descriptor is left; what
        was known stays known then.
        """
        try:
            await self._scan_shared()
        except OSError:
            raise none_left("look at the models' directory") from None

    async def _scan_shared(self) -> None:
        if self._scan is not None:
            begun = self._scan
            await asyncio.wait([begun])
            if self._scan is not None and self._scan is not begun:  # another caller was first
                await asyncio.shield(self._scan)
                return
        self._scan = asyncio.get_running_loop().run_in_executor(self._executor, self._scan_timed)
        self._scan.add_done_callback(self._scanned)
        await asyncio.shield(self._scan)

    async def on_disk(self, work: Callable[[], T]) -> T:
        """Runs `work`, which reads files, on the disk thread."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _forget(self) -> None:
        self._found.clear()
        self.known_keys.clear()

    def _scan_timed(self) -> Index:
        started = self._clock()
        index = self._repository.look()
        took_s = self._clock() - started
        self._next_scan = self._clock() + max(_RESCAN_MIN_S, took_s / _RESCAN_SHARE)
        return index

    def _scanned(self, scan: asyncio.Future[Index]) -> None:
        if self._scan is scan:
            self._scan = None
        # The callers that wait have an error; without any it is not worth a warning.
        if scan.cancelled() or scan.exception() is not None:
            return
        self.before_scan_counts()
        self._repository.take(scan.result())  # on the loop, where look-ups fill what is remembered
        self._forget()
        self.after_scan()

    # --- inside ----------------------------------------------------------------------------------------

    def _look_up(self, name: str, version: str | None) -> ModelFile:
        if version is None:
            version = self._held.get(name) or self._default(name)
        kept = self._kept.get(ModelKey(name, version))
        if kept is not None:
            return kept
        file = self._repository.find(name, version)
        if self._held.get(name) != version:
            self._check_policy(name, version)
        return file

    def _check_policy(self, name: str, version: str) -> None:
        """Raises ModelNotFound where the policy leaves a version out that is on disk."""
        policy = self.policy(name)
        if not policy.is_all and version not in policy.choose(self._repository.versions(name)):
            raise self._left_out(name, version)

    def _kept_versions(self, name: str) -> list[str]:
        return [key.version for key in self._kept if key.name == name]

    def _default(self, name: str) -> str:
        """Returns the version to answer where none was asked for. Raises ModelNotFound or ModelBroken."""
        kept = self._kept_versions(name)
        try:
            return max([self.newest(name), *kept], key=int)
        except ModelHostError:
            if kept:
                return max(kept, key=int)
            raise

    def _left_out(self, name: str, version: str | None) -> ModelNotFound:
        policy, on_disk = self.policy(name), self._repository.versions(name)
        what = f"model '{name}'" if version is None else f"version {version} of model '{name}'"
        return ModelNotFound(
            f"{what} is not served by its version policy, {policy}; on disk are {', '.join(on_disk[-10:])}"
        )
