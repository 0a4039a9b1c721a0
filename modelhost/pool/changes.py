"""What has changed on disk, and what becomes of what is loaded: replaced, removed, or held back.

After every scan loaded models are compared with their files. Changed ones get a successor, which goes through
the same steps as any other model (looked at, opened by a child, admitted, loaded), runs once, and then takes
the place in one step. Whatever fails on the way leaves the one that serves as it is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from modelhost.config import ModelOptions
from modelhost.errors import HostClosed, ModelHostError
from modelhost.pool.background import Background
from modelhost.pool.catalog import Catalog
from modelhost.pool.departures import Departures
from modelhost.pool.failures import Failures
from modelhost.pool.key import ModelKey
from modelhost.pool.slot import Slot, SlotState
from modelhost.pool.table import SlotTable
from modelhost.repository import ModelFile
from modelhost.runtime.base import Runtime

log = logging.getLogger("modelhost")

#: Files that have changed have to stay as they are for so long before anybody looks into them: most that are
#: written in place, and not renamed, are not whole before.
SETTLE_S: Final = 0.5

#: Of a timer that is due: by so much it may be early.
_EARLY_S: Final = 0.01

Stamp = tuple[int, ...]


class Changes:
    """Event-loop thread; files are looked at on the catalog's disk thread.

    `enqueue` starts on a slot that has just been queued.
    """

    def __init__(
        self,
        *,
        table: SlotTable,
        catalog: Catalog,
        runtime: Runtime,
        failures: Failures,
        departures: Departures,
        background: Background,
        enqueue: Callable[[Slot], None],
        clock: Callable[[], float],
        settle_s: float = SETTLE_S,
    ) -> None:
        self._table, self._catalog, self._runtime, self._failures = table, catalog, runtime, failures
        self._departures, self._background, self._enqueue = departures, background, enqueue
        self._clock, self._settle_s = clock, settle_s
        self._defaults: dict[str, str] = {}  # of loaded models, while a scan becomes known
        self._seen: dict[ModelKey, tuple[Stamp, float]] = {}  # changed files, and since when they are as they are
        self._is_comparing = self._is_due = self._is_closed = False
        self._timer: asyncio.TimerHandle | None = None
        catalog.before_scan_counts = self._note_defaults
        catalog.after_scan = self._scanned
        departures.departed = self._departed

    def close(self) -> None:
        """Begins nothing more."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()

    # --- a scan --------------------------------------------------------------------------------------

    def _note_defaults(self) -> None:
        self._defaults = {}
        for slot in self._table.loaded():
            try:
                self._defaults[slot.key.name] = self._catalog.find(slot.key.name).version
            except ModelHostError:  # only by its version is it served
                continue

    def _scanned(self) -> None:
        """Sees to loaded models that the disk has not any more, and to new versions of others."""
        for slot in self._table.loaded():
            self._keep_or_let_go(slot)
        for name, former in self._defaults.items():
            self._hold_back(name, former)
        for name, version in tuple(self._catalog.held.items()):
            if self._catalog.is_kept(ModelKey(name, version)) or self._catalog.fault(ModelKey(name, version)) is None:
                self._hold_back(name, version)
            else:
                self._catalog.hold(name, None)
        self.compare()

    def _keep_or_let_go(self, slot: Slot) -> None:
        key = slot.key
        fault = self._catalog.fault(key)
        if fault is None:
            self._catalog.unkeep(key)
        elif not self._catalog.is_absent(key):  # half of it is there: somebody is at it, or it is broken
            if not self._catalog.is_kept(key):
                log.warning("%s goes on with what it has loaded: %s", key, fault)
            self._catalog.keep(slot.file)
        elif self._defaults.get(key.name) == key.version and not self._is_proven(self._newer(key)):
            self._catalog.keep(slot.file)  # until the newer one has been opened
        else:
            self._catalog.unkeep(key)
            self._drop_successor(slot)
            log.info("%s is not in the repository any more", key)
            self._departures.let_go(slot, cause="removed")

    def _is_proven(self, key: ModelKey | None) -> bool:
        """Whether a model can take over at once; None is nothing to wait for."""
        slot = None if key is None else self._table.get(key)
        return key is None or (slot is not None and slot.state is SlotState.READY)

    def _newer(self, key: ModelKey) -> ModelKey | None:
        """Returns the version that answers by default when `key` is gone; None where there is no newer one."""
        try:
            newest = self._catalog.newest(key.name)
        except ModelHostError:
            return None
        return ModelKey(key.name, newest) if int(newest) > int(key.version) else None

    def _hold_back(self, name: str, former: str) -> None:
        """Has a loaded default version go on as such until a newer one has been opened and has run."""
        key = self._newer(ModelKey(name, former))
        if key is None or self._is_proven(key):
            self._catalog.hold(name, None)
            return
        slot = self._table.get(key)
        if self._catalog.held.get(name) != former:
            self._catalog.hold(name, former)
            log.info("%s is new; version %s answers until it has been opened", key, former)
        if self._failures.last(key) is not None:
            return  # compared with its files below
        if slot is None:
            self._introduce(self._catalog.find(*key))
        else:
            slot.is_wanted = True

    def _introduce(self, file: ModelFile) -> None:
        slot = self.slot_for(file)
        slot.is_wanted = True
        self._table.add(slot)
        self._enqueue(slot)

    # --- files ---------------------------------------------------------------------------------------

    def compare(self) -> None:
        """Looks soon whether the files of loaded models have changed, and of those that could not be loaded."""
        self._is_due = True
        if not self._is_comparing and not self._is_closed:
            self._is_comparing = True
            self._background.spawn(self._compare())

    async def _compare(self) -> None:
        try:
            while self._is_due and not self._is_closed:
                self._is_due = False
                self._act_on(await self._stamps(self._files()))
        finally:
            self._is_comparing = False

    def _act_on(self, found: dict[ModelKey, Stamp]) -> None:
        if self._is_closed:
            return
        for slot in self._table.loaded():
            if slot.key in found:
                self._see(slot, found[slot.key])
        self._forget_failures(found)
        self._look_later()

    def _files(self) -> list[ModelFile]:
        files = []
        for key in {*(slot.key for slot in self._table.loaded()), *self._failures.stamps()}:
            try:
                files.append(self._catalog.find(*key))
            except ModelHostError:
                continue
        return files

    async def _stamps(self, files: Iterable[ModelFile]) -> dict[ModelKey, Stamp]:
        def look() -> dict[ModelKey, Stamp]:
            return {ModelKey.of(file): self._runtime.stamp(file.path) for file in files}

        return await self._catalog.on_disk(look)

    def _see(self, slot: Slot, stamp: Stamp) -> None:
        """Begins on a loaded model whose files have changed, when they have settled; takes over light options."""
        key, options = slot.key, self._options(slot)
        if not stamp or (stamp == slot.stamp and is_same_load(options, slot.options)):
            self._seen.pop(key, None)
            slot.refused = slot.refused if not stamp else None
            self._use(slot, options)
            return
        refused = slot.refused
        if refused is not None and refused.stamp == stamp and is_same_load(options, refused.options):
            return
        seen = self._seen.get(key)
        if seen is None or seen[0] != stamp:
            self._seen[key] = stamp, self._clock()
        elif self._clock() - seen[1] >= self._settle_s - _EARLY_S and slot.successor is None:
            del self._seen[key]
            self.replace(slot)

    def _look_later(self) -> None:
        """Looks again at files that have changed and may still be written to."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._seen and not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(self._settle_s, self.compare)

    def _forget_failures(self, found: dict[ModelKey, Stamp]) -> None:
        for key, stamp in self._failures.stamps().items():
            if key in found and found[key] != stamp:
                self._failures.forget(key)
                if key.name in self._catalog.held:
                    self._hold_back(key.name, self._catalog.held[key.name])

    def _options(self, slot: Slot) -> ModelOptions:
        try:
            return self._catalog.options(self._catalog.find(*slot.key))
        except ModelHostError:
            return slot.options

    def take_pin(self, slot: Slot) -> None:
        """Takes over at once whether a model may leave."""
        slot.pinned = self._options(slot).pinned

    def _use(self, slot: Slot, options: ModelOptions) -> None:
        """Takes over options that need no other load."""
        slot.pinned = options.pinned
        if options != slot.options:
            slot.options = options
            if slot.runs is not None:
                slot.runs.flush()
                slot.runs.rule = self._table.rule_of(slot)
                slot.runs.lane = self._table.lane_of(slot)

    # --- replacing -----------------------------------------------------------------------------------

    def slot_for(self, file: ModelFile) -> Slot:
        """Returns a new slot for a model that was found."""
        options = self._catalog.options(file)
        return Slot(ModelKey.of(file), file, options, pinned=options.pinned)

    def replace(self, slot: Slot) -> Slot:
        """Begins to load what the files of a loaded model are now; returns the slot of that."""
        successor = slot.successor
        if successor is None:
            successor = self.slot_for(self._catalog.find(*slot.key))
            self._table.add_successor(successor, slot)
            log.info("the files of %s have changed", slot.key)
            self._enqueue(successor)
        return successor

    async def is_changed(self, slot: Slot) -> bool:
        """Looks whether the files or options of a loaded model are others than what it was loaded from."""
        path = slot.file.path
        stamp = await self._catalog.on_disk(lambda: self._runtime.stamp(path))
        return stamp != slot.stamp or not is_same_load(self._options(slot), slot.options)

    def served(self, slot: Slot) -> None:
        """Ends what was held back for a model that has become ready."""
        name, version = slot.key
        held = self._catalog.held.get(name)
        if held is None or int(version) <= int(held):
            return
        self._catalog.hold(name, None)
        former = self._table.get(ModelKey(name, held))
        if former is not None and former.state is SlotState.READY:
            self._keep_or_let_go(former)

    def abandon(self, slot: Slot) -> None:
        """Has nothing come of what is on its way: somebody has asked for its unload."""
        slot.is_wanted = False
        self._drop_successor(slot)
        if slot.state is SlotState.QUEUED and not slot.waiters:
            self._table.drop(slot, HostClosed("nobody waits for it"))

    def _drop_successor(self, slot: Slot) -> None:
        successor = slot.successor
        if successor is None:
            return
        if successor.state is SlotState.QUEUED:
            self._table.drop(successor, HostClosed("its model was unloaded"))
        else:  # what is under way ends, and nobody needs it then
            slot.successor = successor.predecessor = None

    def _departed(self, slot: Slot) -> None:
        if self._table.get(slot.key) is None:
            self._seen.pop(slot.key, None)
            if self._catalog.is_kept(slot.key):
                self._catalog.unkeep(slot.key)
                if self._catalog.held.get(slot.key.name) == slot.key.version:
                    self._catalog.hold(slot.key.name, None)


#: Options that are looked at whenever they are needed, or that `Changes` takes over; others mean another load.
_LIGHT: Final = {"pinned", "batching", "version_policy", "max_batch_size", "load_peak_bytes", "read_ahead"}


def is_same_load(options: ModelOptions, others: ModelOptions) -> bool:
    """Whether two models with these options are loaded alike."""
    if options == others:
        return True
    return options.model_dump(exclude=_LIGHT) == others.model_dump(exclude=_LIGHT)
