"""Makes one artifact, or only measures: `python -m modelhost.runtime.build`, in a child process of its own.

The job comes in through stdin and the report goes out through what was stdout, as a manifest without a
key; whatever a library prints goes to stderr. Preparing saves the model optimised with its weights in a
file of their own, opens that in each variant, compares its answers with the original's, measures, and
chooses (`building_choice`).

Measuring opens the original only, and writes nothing.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from modelhost.prepare.failures import is_no_disk, is_no_memory
from modelhost.prepare.footprint import RunFootprint, RunPoint
from modelhost.prepare.manifest import Manifest, RunFigures, Variant, VariantFigures
from modelhost.runtime.building_answers import difference_to_kept, keep, rows_independent
from modelhost.runtime.building_choice import choose, doubted, footprint, with_fastest
from modelhost.runtime.building_job import BuildFailed, Job
from modelhost.runtime.building_questions import Asking, find_asking
from modelhost.runtime.building_runs import Points, run_figures
from modelhost.runtime.building_sessions import Engine, Opened, open_measured, open_only, save, save_packed
from modelhost.runtime.building_steps import (
    Outcome,
    StepFailed,
    allow_pages,
    apart,
    end_with_parent,
    is_killed,
    limit_memory,
    stand_back,
)
from modelhost.tensors import DTYPES
from modelhost.units import format_bytes

#: What packing a weight takes at least; less is noise.
_PACKED_BYTES: Final = 32 << 10
#: Room on the disk for the saved forms, in weights (the packed one has them twice) and besides; where
#: there was less, what does not work may have been cut short by it.
_DISK_FACTOR, _DISK_BYTES = 3.2, 16 << 20

#: How often what only its time speaks against is measured again, and for how long.
_DOUBTS, _DOUBTS_S = 4, 1.0

#: What a model is saved as: the two differ in the packed copies.
Form = Literal["plain", "packed"]
_FORMS: Final[dict[Variant, Form]] = {"mapped": "plain", "mapped_unpacked": "plain", "mapped_prepacked": "packed"}


def main() -> None:
    """Reads the job, limits itself, builds, and writes the report."""
    job = Job.from_table(json.load(sys.stdin))
    end_with_parent(job.parent)
    # What a library prints must not get into the report.
    report = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    stand_back()
    engine = Engine(job.ceiling_bytes, job.custom_op_libraries)
    limit_memory(job.ceiling_bytes)
    try:
        report.write(_Build(job, engine).run().to_json())
    except BuildFailed as error:
        report.write(json.dumps({"failure": str(error), "kind": error.kind}))
    except OSError as error:
        if job.folder is None or error.filename is None:
            raise
        report.write(json.dumps({"failure": f"{error.filename}: {error.strerror}", "kind": "disk"}))
    report.flush()
    os._exit(0)  # nothing is left to be tidied up, and ONNX Runtime takes its time


@dataclass(frozen=True, slots=True)
class _Compared:
    """What a variant's answers are away from the original's at most."""

    difference: float


@dataclass(frozen=True, slots=True)
class _Rows:
    are_independent: bool | None


@dataclass(slots=True)
class _Build:
    """One job's way through its steps."""

    job: Job
    engine: Engine
    reasons: list[str] = field(default_factory=list)
    unsaved: list[str] = field(default_factory=list)
    unfitting: list[str] = field(default_factory=list)
    """What met the memory ceiling."""
    tolerances: dict[Variant, float] = field(default_factory=dict)

    def run(self) -> Manifest:
        """Returns the report. Raises BuildFailed."""
        original = apart(self._original)
        opened, asking = original.first(Opened), original.first(Asking)
        if opened is None:
            raise self._failure(original.failure)
        if self.job.folder is not None and is_killed(original.failure):
            raise self._failure(original.failure)  # an artifact is for keeps: no half of a finding
        runs = tuple(original.all(RunFigures))
        has_run = asking is not None and len(runs) == len(asking.batches)
        stock = _figures("heap", opened, runs if has_run else ())
        if asking is None or not has_run:
            self._check_finding(original.failure)
            why = "it could not be run" if self.job.folder is None else "nothing to compare answers by"
            return self._manifest([stock], "heap", f"{why}: {original.failure}", None)
        rows = original.first(_Rows)
        independent = rows.are_independent if rows is not None else None
        if self.job.folder is None:
            points = original.all(RunPoint)
            return self._manifest([stock], "heap", "it was only measured", footprint(asking, points, runs, independent))
        usable = self._variants(asking)
        if not usable:
            self._check_finding("; ".join(self.reasons))
        if self.unsaved and (short := self._disk_failure("; ".join(self.unsaved))):
            raise short  # what could not be saved might have been the best of them
        if self.unfitting and not self.job.is_last:
            raise BuildFailed("; ".join(self.unfitting), "memory")  # with more it may be the best of them
        usable = self._settled(usable, stock, asking)
        chosen, why = choose(usable, stock, room_bytes=self.job.ceiling_bytes)
        self._keep_only(chosen)
        why = "; ".join([why, *self.reasons])
        figures = next(found for found in (stock, *usable) if found.variant == chosen)
        points = []
        if asking.sizes:
            points = _apart_again(functools.partial(self._points, figures, asking)).all(RunPoint)
        return self._manifest([stock, *usable], chosen, why, footprint(asking, points, figures.runs, independent))

    # --- steps: each in a fork -------------------------------------------------------------------------

    def _original(self) -> Iterator[Any]:
        """Opens the original, finds inputs that it runs on, measures the runs and keeps the answers."""
        job = self.job
        session, opened = open_measured(job.file, "heap", job.optimization, job.external)
        yield opened
        if job.non_tensor_inputs:
            raise StepFailed(f"input '{job.non_tensor_inputs[0]}' is no tensor")
        for spec in job.inputs:
            if spec.datatype not in DTYPES:
                raise StepFailed(f"input '{spec.name}' is {spec.datatype}")
        asking = find_asking(session, job.inputs, job.dimensions)
        yield asking
        runs: list[RunFigures] = []
        for rows in asking.batches:
            question = asking.question(rows)
            answers = session.run(None, question)
            if job.folder is not None:
                keep(answers, job.folder / "answers" / str(rows))
            del answers
            runs.append(run_figures(session, question, rows, self.engine))
            yield runs[-1]
        yield _Rows(rows_independent(session, asking))
        if job.folder is None:
            yield from Points(session, asking, self.engine, runs).measure()

    def _save(self, form: Form) -> Iterator[Any]:
        if form == "plain":
            names = {spec.name for spec in self.job.inputs}.union(self.job.non_tensor_inputs)
            save(self.job.file, self._folder / form, names)
            yield True
        else:
            allow_pages(self._folder / "plain" / "model.bin")
            yield save_packed(self._folder / "plain" / "model.onnx", self._folder / form)

    def _held_unpacked(self) -> Iterator[Any]:
        """Opens the plain form without packing, to see what is held then."""
        allow_pages(self._folder / "plain" / "model.bin")
        yield open_measured(self._folder / "plain" / "model.onnx", "mapped_unpacked")[1]

    def _variant(self, variant: Variant, asking: Asking) -> Iterator[Any]:
        """Opens a saved form, compares its answers with the original's and measures it."""
        allow_pages(self._folder / _FORMS[variant] / "model.bin")
        session, opened = open_measured(self._folder / _FORMS[variant] / "model.onnx", variant)
        yield opened
        for rows in asking.batches:
            question = asking.question(rows)
            yield _Compared(difference_to_kept(self._folder / "answers" / str(rows), session.run(None, question)))
            yield run_figures(session, question, rows, self.engine)

    def _points(self, chosen: VariantFigures, asking: Asking) -> Iterator[Any]:
        """Measures further runs of what was chosen."""
        allow_pages(self._folder / "model.bin")
        if chosen.variant == "heap":
            session = open_only(self.job.file, chosen.variant, self.job.external)
        else:
            session = open_only(self._folder / "model.onnx", chosen.variant)
        yield from Points(session, asking, self.engine, chosen.runs).measure()

    # --- the order of steps ----------------------------------------------------------------------------

    @property
    def _folder(self) -> Path:
        assert self.job.folder is not None
        return self.job.folder

    def _variants(self, asking: Asking) -> list[VariantFigures]:
        """Saves and measures what may be chosen; what did not work stands in `reasons`."""
        if not self._saved("plain"):
            return []
        usable = self._measured("mapped", asking)
        unpacked = apart(self._held_unpacked).first(Opened)
        if usable and unpacked and usable[0].resident_bytes - unpacked.resident_bytes < _PACKED_BYTES:
            return usable  # nothing was packed: there is only one way to map it
        if self._saved("packed"):
            usable += self._measured("mapped_prepacked", asking)
        return usable + self._measured("mapped_unpacked", asking)

    def _saved(self, form: Form) -> bool:
        """Saves a form; returns whether that is of use."""
        outcome = _apart_again(functools.partial(self._save, form))
        if outcome.failure:
            self.unsaved.append(f"saving ({form}): {outcome.failure}")
            self._note(self.unsaved[-1])
        return outcome.said == [True]

    def _measured(self, variant: Variant, asking: Asking) -> list[VariantFigures]:
        """Measures a variant; returns its figures, none where it does not serve."""
        outcome = _apart_again(functools.partial(self._variant, variant, asking))
        opened = outcome.first(Opened)
        if outcome.failure or opened is None:
            self._note(f"{variant}: {outcome.failure}")
            return []
        self.tolerances[variant] = max(compared.difference for compared in outcome.all(_Compared))
        return [_figures(variant, opened, tuple(outcome.all(RunFigures)))]

    def _settled(self, usable: list[VariantFigures], stock: VariantFigures, asking: Asking) -> list[VariantFigures]:
        """Measures again what only its time speaks against: a neighbour on the machine may well double that."""
        ends = time.monotonic() + _DOUBTS_S
        for _ in range(_DOUBTS):
            found = doubted(usable, stock, room_bytes=self.job.ceiling_bytes)
            if found is None or time.monotonic() > ends:
                break
            runs = tuple(_apart_again(functools.partial(self._variant, found.variant, asking)).all(RunFigures))
            if len(runs) == len(found.runs):
                faster = with_fastest(found, runs)
                usable = [faster if other is found else other for other in usable]
        return usable

    def _note(self, reason: str) -> None:
        self.reasons.append(reason)
        if is_no_memory(reason) or is_killed(reason):
            self.unfitting.append(reason)

    def _keep_only(self, chosen: Variant) -> None:
        """Puts the chosen form's files where an artifact has them."""
        for name in ("model.onnx", "model.bin") if chosen != "heap" else ():
            source = self._folder / _FORMS[chosen] / name
            if source.exists():
                source.rename(self._folder / name)

    def _manifest(
        self, figures: Sequence[VariantFigures], variant: Variant, why: str, run: RunFootprint | None
    ) -> Manifest:
        chosen = next(found for found in figures if found.variant == variant)
        names = () if variant == "heap" else ("model.onnx", "model.bin")
        return Manifest(
            key="",
            variant=variant,
            reason=why,
            resident_bytes=chosen.resident_bytes,
            peak_bytes=chosen.peak_bytes,
            weights_bytes=sum(_size_bytes(self._folder / name) for name in names),
            tolerance=self.tolerances.get(variant, 0.0),
            figures=tuple(figures),
            run=run,
            ceiling_bytes=self.job.ceiling_bytes if self.unfitting else 0,
        )

    # --- failures --------------------------------------------------------------------------------------

    def _failure(self, reason: str) -> BuildFailed:
        """Returns a failure of the kind that the reason, or the disk, says."""
        if is_no_memory(reason) or is_killed(reason):
            return BuildFailed(reason, "memory")
        no_disk = self._disk_failure(reason)
        return no_disk or BuildFailed(reason, "crash" if reason.startswith("it was ended by") else "model")

    def _disk_failure(self, reason: str) -> BuildFailed | None:
        """Returns a failure of the disk where the reason names it, or where there was little room on it."""
        folder = self.job.folder
        if folder is None:
            return None
        room = shutil.disk_usage(folder).free + sum(_size_bytes(file) for file in folder.rglob("*"))
        wanted = int(self.job.weight_bytes * _DISK_FACTOR) + _DISK_BYTES
        if room >= wanted and not is_no_disk(reason):
            return None
        return BuildFailed(
            f"{os.strerror(errno.ENOSPC)}: preparing may take {format_bytes(wanted)} and what the model answers, "
            f"{format_bytes(room)} were free ({reason})",
            "disk",
        )

    def _check_finding(self, reason: str) -> None:
        """Raises BuildFailed where memory or disk ran out: that is no finding about the model, and not for keeps."""
        failure = self._failure(reason)
        if failure.kind in ("memory", "disk"):
            raise failure


def _apart_again(step: Callable[[], Iterator[Any]]) -> Outcome:
    """Runs a step apart, and once more where it was killed: it takes less than the original, which was not."""
    outcome = apart(step)
    return apart(step) if is_killed(outcome.failure) else outcome


def _figures(variant: Variant, opened: Opened, runs: tuple[RunFigures, ...]) -> VariantFigures:
    return VariantFigures(variant, opened.load_ms, opened.resident_bytes, opened.peak_bytes, runs)


def _size_bytes(file: Path) -> int:
    return file.stat().st_size if file.is_file() else 0


if __name__ == "__main__":
    main()
