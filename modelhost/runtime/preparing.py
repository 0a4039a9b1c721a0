"""What is known of models before they are loaded, and the child processes that find it out.

A model is opened by a child before the host ever opens it. Where the cache can be written the child
prepares it, once for all hosts to come; elsewhere it only measures, and this process remembers.
"""

from __future__ import annotations

import functools
import itertools
import logging
import os
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from cachetools import LRUCache

from modelhost import files
from modelhost.conditions import Conditions
from modelhost.config import ModelOptions, PrepareSettings
from modelhost.prepare import Artifact, ArtifactStore, Manifest
from modelhost.prepare.failures import is_no_descriptor
from modelhost.prepare.footprint import RunFootprint
from modelhost.prepare.launcher import Bounds, Child, PrepareFailed, measure, prepare
from modelhost.repository import OnnxFormatError, OnnxSummary, read_summary
from modelhost.runtime.base import (
    CancelToken,
    Inspection,
    LoadError,
    LoadPlan,
    NeedsMemory,
    NoDescriptor,
    Optimization,
    Preparation,
)
from modelhost.runtime.estimate import preparation
from modelhost.tensors import DTYPES

log = logging.getLogger("modelhost")

#: Measured models that are remembered; one or two kilobytes each.
_MEASURED_KEPT: Final = 4096

#: The condition of a cache whose disk is full or broken.
_UNWRITTEN: Final = "artifacts_unwritten"
_READ_ONLY: Final = tuple(map(os.strerror, files.READ_ONLY))
#: It is over when there is room for what could not be written: in sizes of the model, and besides.
_DISK_FACTOR, _DISK_BYTES = 4, 16 << 20

#: File, its size and time, optimisation and sizes that it was measured with.
_MeasuredKey = tuple[Path, tuple[int, ...], str]


class Preparer:
    """Knows the figures of models, and gets those that it does not know. Any thread; one `prepare` at a time."""

    def __init__(
        self,
        store: ArtifactStore,
        settings: PrepareSettings,
        *,
        beside: ArtifactStore | None = None,
        conditions: Conditions | None = None,
    ) -> None:
        self.store, self._settings = store, settings
        self._conditions = conditions or Conditions()
        self._stores = (store,) if beside is None else (store, beside)
        self._measured: LRUCache[_MeasuredKey, LoadPlan] = LRUCache(_MEASURED_KEPT)
        #: The highest ceiling at which a child could not open a model.
        self._too_little: LRUCache[_MeasuredKey, int] = LRUCache(_MEASURED_KEPT)
        #: The external data of a file as it was.
        self._externals: LRUCache[Path, tuple[tuple[int, ...], tuple[str, ...]]] = LRUCache(_MEASURED_KEPT)
        self._in_use: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._child: Child | None = None
        store.clean_up()  # what a crash has left behind; artifacts are not looked at

    # --- looking -------------------------------------------------------------------------------------

    def inspect(self, file: Path, options: ModelOptions) -> Inspection:
        """Reads the face of a model, in milliseconds and without its weights. Raises LoadError."""
        found_as = self.fingerprint(file)
        summary = _summary(file)
        _check_face(summary)
        plan = self._measured_plan(file, options)
        if plan is None and _wants_artifact(options):
            artifact = self._find(file, summary.external_files, options.dimensions)
            if artifact is not None:
                plan = prepared_plan(artifact, options)
                found_as = self.fingerprint(file)
        return Inspection(
            inputs={spec.name: spec for spec in summary.inputs},
            outputs={spec.name: spec for spec in summary.outputs if spec.datatype in DTYPES},
            plan=plan,
            fingerprint=found_as,
            preparation=None if plan is not None else self._preparation(file, summary, options),
        )

    def fingerprint(self, file: Path) -> tuple[int, ...]:
        """Returns what changes when the file, or what is prepared of it, does; empty where it is gone."""
        stat = _stat(file)
        return (*stat, *(store.token(file) for store in self._stores)) if stat else ()

    def stamp(self, file: Path) -> tuple[int, ...]:
        """Returns what changes when a model's files do, its external data included; empty where one is gone."""
        stat = _full_stat(file)
        others = [_full_stat(file.parent / name) for name in self.external_files(file)] if stat else []
        return tuple(itertools.chain(stat, *others)) if all(others) else ()

    def external_files(self, file: Path) -> tuple[str, ...]:
        """Returns the names of a model's other files, as it writes them; none where it cannot be read."""
        stat = _full_stat(file)
        with self._lock:
            known = self._externals.get(file)
        if known is None or known[0] != stat:
            try:
                known = stat, _summary(file).external_files
            except LoadError:  # being written, or none at all: so it stands for itself
                known = stat, ()
            with self._lock:
                self._externals[file] = known
        return known[1]

    def _find(
        self, file: Path, external: tuple[str, ...] | None = None, dimensions: Mapping[str, int] | None = None
    ) -> Artifact | None:
        """Returns an artifact of the cache, or one that came with the models; reads the file where neither knows it."""
        looks = (None,) if external is None else (None, external)
        found = (store.find(file, others, dimensions) for others in looks for store in self._stores)
        return next((artifact for artifact in found if artifact is not None), None)

    # --- preparing -----------------------------------------------------------------------------------

    def prepare(
        self, file: Path, options: ModelOptions, *, ceiling_bytes: int, is_last: bool, cancel: CancelToken
    ) -> None:
        """Prepares a model, or measures it where nothing can be written. See Runtime.prepare."""
        bounds = Bounds(ceiling_bytes, self._settings.timeout_s)
        self._child = child = Child()
        cancel.bind(child.kill)
        before = self._files_now(file)
        try:
            if not self._is_prepared(file, options, bounds, child, is_last=is_last):
                self._measure(file, options, bounds, child)
        except PrepareFailed as error:
            if error.kind == "descriptors":
                raise NoDescriptor(str(error)) from None
            if error.kind != "cancelled" and self._files_now(file) != before:
                log.info("%s was replaced while a child had it open, and is looked at again: %s", file, error)
                return
            if error.kind == "memory" and is_last:
                with self._lock:
                    self._too_little[_measured_key(file, options)] = ceiling_bytes
            raise (NeedsMemory if error.kind == "memory" else LoadError)(str(error)) from None
        finally:
            self._child = None

    def _files_now(self, file: Path) -> list[tuple[int, ...]]:
        """Returns what changes when a model's files are replaced."""
        try:
            external = _summary(file).external_files
        except LoadError:
            external = ()
        return [_stat(path) for path in (file, *(file.parent / name for name in external))]

    def preparing_bytes(self) -> int:
        """Returns what the child holds now."""
        child = self._child
        return child.committed_bytes() if child is not None else 0

    def _is_prepared(self, file: Path, options: ModelOptions, bounds: Bounds, child: Child, *, is_last: bool) -> bool:
        """Prepares; returns False where measuring has to do. Raises PrepareFailed."""
        if not (self._settings.on_load and _wants_artifact(options)):
            return False
        try:
            external = _summary(file).external_files
            if self._find(file, external, options.dimensions) is not None:
                return True  # by another host, since this one has looked
            made = prepare(
                self.store,
                file,
                external,
                bounds,
                dimensions=options.dimensions,
                child=child,
                is_last=is_last,
            )
        except PrepareFailed as error:
            if error.kind == "disk" or (error.kind == "memory" and is_last):
                log.warning("%s cannot be prepared here and will only be measured: %s", file, error)
                if error.kind == "disk":
                    self._note_disk(str(error), _stat(file)[:1])
                return False
            raise
        self._conditions.clear(_UNWRITTEN)
        self.store.clean_up(
            max_bytes=self.store.size_bound(self._settings.cache_max_bytes),
            in_use=self.in_use() | {made.directory.name},  # what is about to be loaded, too
        )
        return True

    def _note_disk(self, reason: str, size_bytes: tuple[int, ...]) -> None:
        """Notes a disk that takes no more; one that is not to be written to is how the host was set up."""
        if any(words in reason for words in _READ_ONLY):
            return
        wanted_bytes = _DISK_BYTES + _DISK_FACTOR * sum(size_bytes)
        self._conditions.note(
            _UNWRITTEN,
            "models that have to be prepared are served from the heap: the cache's disk takes no more",
            is_over=lambda: self.store.has_room(wanted_bytes),
        )

    def _measure(self, file: Path, options: ModelOptions, bounds: Bounds, child: Child) -> None:
        """Measures at the wanted optimisation, or else at one that needs less at its peak."""
        wanted: Optimization = options.optimization or "all"
        as_here = functools.partial(
            measure,
            file,
            bounds,
            dimensions=options.dimensions,
            custom_op_libraries=self.store.identity.custom_op_libraries,
            child=child,
        )
        try:
            manifest = as_here(optimization=wanted)
        except PrepareFailed as error:
            if error.kind != "memory" or options.optimization is not None:
                raise
            wanted = "extended"
            manifest = as_here(optimization=wanted)
        with self._lock:
            self._measured[_measured_key(file, options)] = _heap_plan(manifest, wanted)

    def _preparation(self, file: Path, summary: OnnxSummary, options: ModelOptions) -> Preparation:
        """Returns what a child needs, more than what one had in vain."""
        found = preparation(summary)
        with self._lock:
            too_little_bytes = self._too_little.get(_measured_key(file, options), 0)
        # A little more would not do either.
        least_bytes = max(found.least_bytes, too_little_bytes + too_little_bytes // 16)
        likely_bytes = options.load_peak_bytes or found.likely_bytes
        return Preparation(least_bytes, max(least_bytes, likely_bytes))

    def _measured_plan(self, file: Path, options: ModelOptions) -> LoadPlan | None:
        with self._lock:
            return self._measured.get(_measured_key(file, options))

    # --- loaded models ---------------------------------------------------------------------------------

    def opened(self, plan: LoadPlan) -> None:
        """Counts a session on an artifact, which is kept from then on."""
        if plan.artifact is not None:
            with self._lock:
                self._in_use[plan.artifact.parent.name] += 1

    def closed(self, plan: LoadPlan) -> None:
        """Counts the end of a session."""
        if plan.artifact is not None:
            with self._lock:
                self._in_use[plan.artifact.parent.name] -= 1

    def in_use(self) -> frozenset[str]:
        """The artifacts with sessions, by key."""
        with self._lock:
            return frozenset(+self._in_use)

    def reject(self, plan: LoadPlan) -> None:
        """Removes an artifact that could not be opened, or does without it where that is not allowed."""
        if plan.artifact is not None:
            log.warning("%s cannot be opened and is not used any more", plan.artifact.parent)
            folder = plan.artifact.parent
            for store in self._stores:
                if store.cache == folder.parent:
                    store.reject(folder.name)

    def learn(self, file: Path, plan: LoadPlan, resident_bytes: int) -> None:
        """Lets a manifest's figure grow to what a load really held."""
        artifact = self._find(file)
        if artifact is not None and artifact.manifest.resident_bytes < resident_bytes:
            self.store.grow(artifact, resident_bytes)

    def files_of(self, file: Path) -> tuple[Path, ...]:
        """Returns the files whose pages a model leaves in the page cache: its own, and its artifact's."""
        try:
            external = _summary(file).external_files
        except LoadError:
            external = ()
        artifact = self._find(file)
        prepared = (artifact.directory / name for name in artifact.manifest.files) if artifact is not None else ()
        return (file, *(file.parent / name for name in external), *prepared)


def prepared_plan(artifact: Artifact, options: ModelOptions) -> LoadPlan:
    """Returns how a prepared model loads, by the figures of its manifest."""
    manifest = artifact.manifest
    if manifest.variant == "heap":
        return _heap_plan(manifest, "all")
    return LoadPlan(
        resident_bytes=manifest.resident_bytes,
        peak_bytes=manifest.peak_bytes,
        optimization="none",
        artifact=artifact.model_file,
        variant=manifest.variant,
        run=_lean(manifest.run),
        read_ahead=options.read_ahead,
    )


def _heap_plan(manifest: Manifest, optimization: Optimization) -> LoadPlan:
    return LoadPlan(manifest.resident_bytes, manifest.peak_bytes, optimization, run=_lean(manifest.run))


def _lean(run: RunFootprint | None) -> RunFootprint | None:
    """Leaves the measured points in the manifest: they are evidence, and a quarter of what a model holds here."""
    return None if run is None else replace(run, measured=())


def _wants_artifact(options: ModelOptions) -> bool:
    """Artifacts are made at full optimisation; a model that asks for less is loaded as it is."""
    return options.optimization in (None, "all")


def _summary(file: Path) -> OnnxSummary:
    try:
        return read_summary(file)
    except (OnnxFormatError, OSError) as error:
        raise (NoDescriptor if is_no_descriptor(error) else LoadError)(str(error)) from None


def _measured_key(file: Path, options: ModelOptions) -> _MeasuredKey:
    return (file, _stat(file), f"{options.optimization} {sorted(options.dimensions.items())}")


def _stat(file: Path) -> tuple[int, ...]:
    return _full_stat(file)[:2]


def _full_stat(file: Path) -> tuple[int, ...]:
    """Also tells a file from another one that was renamed into its place, with its time."""
    try:
        stat = file.stat()
    except OSError:
        return ()
    return (stat.st_size, stat.st_mtime_ns, stat.st_ino)


def _check_face(summary: OnnxSummary) -> None:
    """Raises LoadError where the V2 protocol cannot carry what the model takes or gives."""
    if summary.non_tensor_inputs:
        names = ", ".join(f"'{name}'" for name in summary.non_tensor_inputs)
        raise LoadError(f"inputs {names} are no tensors, which the V2 protocol cannot carry")
    if not any(spec.datatype in DTYPES or spec.datatype == "UNDEFINED" for spec in summary.outputs):
        names = ", ".join(f"'{spec.name}' {spec.datatype}" for spec in summary.outputs)
        names = names or ", ".join(f"'{name}'" for name in summary.opaque_outputs)
        raise LoadError(f"the V2 protocol can carry none of the outputs: {names or 'there are none'}")
