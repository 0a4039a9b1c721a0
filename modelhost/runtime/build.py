"""Makes one artifact: `python -m modelhost.runtime.build JOB.json`, in a child process of its own.

Saves the model optimised with its weights in a file of their own, opens that in each variant, compares
its answers with the original's, measures, and chooses. The rule: a variant is as slow as its worst run
against the fastest of all variants' runs with as many rows; of the variants whose outputs agree and
which are within 10 % (and 0.2 ms) of the least slow one, the one that holds the least memory; where
two are within 1 MB, the one that loads faster.

Each step runs in a fork of a process that is set up as the host is and has opened no model: what it
measures is what the host will see, since no free heap page of an earlier step hides a byte of it, and
a step that crashes costs its variant only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np

from modelhost.memory import Probe, allocator
from modelhost.prepare.face import with_inputs
from modelhost.prepare.launcher import is_no_memory
from modelhost.prepare.manifest import RunFigures, Variant, VariantFigures
from modelhost.repository import OnnxSummary, read_summary
from modelhost.runtime.ort import OrtRuntime
from modelhost.tensors import DTYPES, Array, TensorSpec
from modelhost.units import format_bytes

allocator.configure()

import onnxruntime as ort  # noqa: E402

T = TypeVar("T")

_PROVIDERS: Final = ["CPUExecutionProvider"]
_SLOWER: Final = 1.10
_SLOWER_MS: Final = 0.2
_SAME_BYTES: Final = 1 << 20
#: Sizes tried for dimensions of any size but the first, until the model runs with one; the second is
#: for the channels of what may be an image.
_SIZES: Final = ((16, 16), (1, 1), (8, 8), (32, 3), (64, 64), (64, 3), (224, 3), (32, 1), (224, 1))
_TRYING_S: Final = 60.0
_ROWS: Final = (1, 8)
#: Runs that are timed: so many, and more while they are short. The fastest counts: others use the machine too.
_REPEATS, _MAX_REPEATS, _TIMED_S = 3, 50, 0.03
#: Largest difference to the original that still counts as the same answer.
_RELATIVE, _ABSOLUTE = 1e-3, 1e-5
#: Room on the disk for the saved forms, in weights (the packed one has them twice) and besides; where
#: there was less, what does not work may have been cut short by it.
_DISK_FACTOR, _DISK_BYTES = 3.2, 16 << 20
_PR_SET_PDEATHSIG: Final = 1

#: What each variant opens: the two saved forms differ in the packed copies.
_SAVED: Final[dict[Variant, str]] = {"mapped": "plain", "mapped_unpacked": "plain", "mapped_prepacked": "packed"}


class StepFailed(Exception):
    """One step ended without a result; the text says why."""


@dataclass(frozen=True, slots=True)
class Built:
    """What a child reports."""

    variant: Variant
    reason: str
    weights_bytes: int
    tolerance: float
    figures: tuple[VariantFigures, ...]


@dataclass(frozen=True, slots=True)
class _Opened:
    """What opening took: milliseconds, bytes held, bytes at the peak."""

    load_ms: float
    resident_bytes: int
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class _Question:
    """Inputs that the original ran on, and with how many rows."""

    rows: int
    feed: dict[str, Array]


def main() -> None:
    """Reads the job, limits itself, builds, and writes the report."""
    job = json.loads(Path(sys.argv[1]).read_text())
    _end_with_parent(job["parent"])
    # A model that explodes takes this process, and nobody else; the kernel picks it first, too.
    with contextlib.suppress(OSError):  # some sandboxes have no such file
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    runtime = OrtRuntime(activation_ceiling_bytes=job["ceiling_bytes"])
    # The kernel counts address space here, of which a good part is never touched: that is not held against us.
    untouched_bytes = max(0, _status("VmData") - _status("RssAnon"))
    ceiling_bytes = job["ceiling_bytes"] + untouched_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (ceiling_bytes, ceiling_bytes))
    try:
        built = build(Path(job["file"]), Path(job["folder"]), runtime)
    except StepFailed as error:
        sys.exit(str(error))
    Path(job["report"]).write_text(json.dumps(asdict(built)))


def build(file: Path, folder: Path, runtime: OrtRuntime) -> Built:
    """Builds the artifact of `file` in `folder`. Raises StepFailed where the original does not open."""
    summary = read_summary(file)
    opened = _apart(functools.partial(_open_and_close, file))
    asked = folder / "asked.pickle"
    try:
        runs = _apart(functools.partial(_ask, file, summary, asked, runtime))
    except StepFailed as error:
        _check_finding(str(error), folder, summary)
        stock = VariantFigures("heap", opened.load_ms, opened.resident_bytes, opened.peak_bytes, ())
        return Built("heap", f"nothing to compare answers by: {error}", 0, 0.0, (stock,))
    stock = VariantFigures("heap", opened.load_ms, opened.resident_bytes, opened.peak_bytes, runs)
    reasons = _save_all(file, folder, summary)
    usable, tolerances = [], {}
    for variant, saved in _SAVED.items():
        if not (folder / saved / "model.onnx").exists():
            continue
        try:
            step = functools.partial(_measure, folder / saved / "model.onnx", variant, asked, runtime)
            measured, tolerances[variant] = _apart(step)
            usable.append(measured)
        except StepFailed as error:
            reasons.append(f"{variant}: {error}")
    if not usable:
        _check_finding("; ".join(reasons), folder, summary)
    chosen, reason = _choose(usable, stock)
    if reasons:
        reason += "; " + "; ".join(reasons)
    weights_bytes = 0
    for name in ("model.onnx", "model.bin") if chosen != "heap" else ():
        source = folder / _SAVED[chosen] / name
        if source.exists():
            source.rename(folder / name)
            weights_bytes += (folder / name).stat().st_size
    return Built(chosen, reason, weights_bytes, tolerances.get(chosen, 0.0), (stock, *usable))


def _choose(usable: Sequence[VariantFigures], stock: VariantFigures) -> tuple[Variant, str]:
    best = [min(found.runs[index].ms for found in [*usable, stock]) for index in range(len(stock.runs))]

    def slowness(found: VariantFigures) -> float:
        return max([1.0, *((run.ms - _SLOWER_MS) / ms for run, ms in zip(found.runs, best, strict=True))])

    if not usable:
        return "heap", "no variant opened and answered as the original does"
    least_slow = min(map(slowness, usable))
    candidates = [found for found in usable if slowness(found) <= least_slow * _SLOWER]
    least = min(found.resident_bytes for found in candidates)
    chosen = min(
        (found for found in candidates if found.resident_bytes <= least + _SAME_BYTES), key=lambda found: found.load_ms
    )
    if chosen.resident_bytes >= stock.resident_bytes:
        return "heap", f"mapping saves nothing: {chosen.resident_bytes} bytes against {stock.resident_bytes}"
    return chosen.variant, (
        f"{chosen.resident_bytes} bytes held against {stock.resident_bytes} from the heap, loaded in "
        f"{chosen.load_ms:.1f} ms against {stock.load_ms:.1f}"
    )


def options_for(variant: Variant) -> Any:
    """Returns the session options that open a model of this variant, as the host does."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 4
    options.add_session_config_entry("session.use_env_allocators", "1")
    if variant != "heap":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if variant == "mapped_unpacked":
        options.add_session_config_entry("session.disable_prepacking", "1")
    return options


# --- steps, each in a process of its own ---------------------------------------------------------------


def _apart(step: Callable[[], T]) -> T:
    """Runs a step in a fork and returns its result. Raises StepFailed."""
    reader, writer = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            _end_with_parent(parent)
            with open(writer, "wb") as stream:
                try:
                    outcome: tuple[bool, Any] = (True, step())
                except Exception as error:
                    outcome = (False, _reason(error))
                pickle.dump(outcome, stream)
            status = 0
        finally:
            sys.stderr.flush()
            os._exit(status)
    os.close(writer)
    with open(reader, "rb") as stream:
        said = stream.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:
        raise StepFailed(f"it was ended by {_signal_text(-code)}")
    if code > 0:
        raise StepFailed("it ended without a word")
    is_done, result = pickle.loads(said)
    if not is_done:
        raise StepFailed(result)
    value: T = result
    return value


def _open_and_close(file: Path) -> _Opened:
    return _open(file, "heap")[1]


def _ask(file: Path, summary: OnnxSummary, asked: Path, runtime: OrtRuntime) -> tuple[RunFigures, ...]:
    """Finds inputs that the original runs on, leaves them with its answers in `asked`, and measures the runs."""
    if summary.non_tensor_inputs:
        raise StepFailed(f"input '{summary.non_tensor_inputs[0]}' is no tensor")
    for spec in summary.inputs:
        if spec.datatype not in DTYPES:
            raise StepFailed(f"input '{spec.name}' is {spec.datatype}")
    session = ort.InferenceSession(str(file), options_for("heap"), providers=_PROVIDERS)
    questions = _questions(session, summary.inputs)
    answers = [session.run(None, question.feed) for question in questions]
    asked.write_bytes(pickle.dumps((questions, answers)))
    return _runs(session, questions, runtime)


def _save_all(file: Path, folder: Path, summary: OnnxSummary) -> list[str]:
    """Saves both forms; returns what did not work. The packed one is left out where nothing was packed."""
    reasons = []
    for saved in ("plain", "packed"):
        try:
            _apart(functools.partial(_save, file, folder / saved, [spec.name for spec in summary.inputs]))
        except StepFailed as error:
            reasons.append(f"saving ({saved}): {error}")
            shutil.rmtree(folder / saved, ignore_errors=True)
    sizes = [_size_bytes(folder / saved / "model.bin") for saved in ("plain", "packed")]
    if sizes[0] == sizes[1]:
        shutil.rmtree(folder / "packed", ignore_errors=True)
    return reasons


def _save(file: Path, folder: Path, inputs: Sequence[str]) -> None:
    """Saves the optimised graph with its weights in `model.bin`."""
    folder.mkdir()
    options = options_for("heap")
    options.optimized_model_filepath = str(folder / "model.onnx")
    for key, value in (
        ("optimized_model_external_initializers_file_name", "model.bin"),
        ("optimized_model_external_initializers_min_size_in_bytes", "1024"),
    ):
        options.add_session_config_entry(f"session.{key}", value)
    if folder.name == "packed":
        options.add_session_config_entry("session.save_external_prepacked_constant_initializers", "1")
    ort.InferenceSession(str(file), options, providers=_PROVIDERS)
    saved = folder / "model.onnx"
    saved.write_bytes(with_inputs(saved.read_bytes(), set(inputs)))


def _measure(file: Path, variant: Variant, asked: Path, runtime: OrtRuntime) -> tuple[VariantFigures, float]:
    """Opens a saved form, compares its answers with the original's and measures it."""
    session, opened = _open(file, variant)
    questions, answers = pickle.loads(asked.read_bytes())
    tolerance = _difference(answers, [session.run(None, question.feed) for question in questions])
    runs = _runs(session, questions, runtime)
    return VariantFigures(variant, opened.load_ms, opened.resident_bytes, opened.peak_bytes, runs), tolerance


def _open(file: Path, variant: Variant) -> tuple[Any, _Opened]:
    """Opens a model and measures that."""
    # A fork's peak is measured beside it: watching would be in the figures of what is held.
    peak_bytes = _apart(functools.partial(_peak_of_loading, file, variant))
    probe = Probe()
    allocator.trim()
    before = probe.committed_bytes()
    started = time.perf_counter()
    session = ort.InferenceSession(str(file), options_for(variant), providers=_PROVIDERS)
    load_ms = (time.perf_counter() - started) * 1e3
    resident_bytes = max(0, probe.committed_bytes() - before)
    return session, _Opened(load_ms, resident_bytes, max(peak_bytes, resident_bytes))


def _peak_of_loading(file: Path, variant: Variant) -> int:
    """Returns the most that a load takes: of the heap alone, since pages of files come and go as they like."""
    ended, highest = threading.Event(), 0

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.0005):
            highest = max(highest, _status("RssAnon"))

    watching = threading.Thread(target=watch)
    watching.start()
    before = _status("RssAnon")
    session = ort.InferenceSession(str(file), options_for(variant), providers=_PROVIDERS)
    highest = max(highest, _status("RssAnon"))
    ended.set()
    watching.join()
    del session
    return max(0, highest - before)


def _runs(session: Any, questions: Sequence[_Question], runtime: OrtRuntime) -> tuple[RunFigures, ...]:
    """Measures one run of each question, from an empty arena, and times some more."""
    figures = []
    for question in questions:
        session.run(None, question.feed)  # touches the weights: pages of their file are not this run's
        runtime.trim()
        allocator.trim()
        _reset_peak()
        before = _status("VmRSS")
        session.run(None, question.feed)
        taken_bytes = max(0, _status("VmHWM") - before)
        times: list[float] = []
        while len(times) < _REPEATS or (sum(times) < _TIMED_S and len(times) < _MAX_REPEATS):
            started = time.perf_counter()
            session.run(None, question.feed)
            times.append(time.perf_counter() - started)
        figures.append(RunFigures(question.rows, taken_bytes, min(times) * 1e3))
    return tuple(figures)


# --- questions and answers -----------------------------------------------------------------------------


def _questions(session: Any, specs: Sequence[TensorSpec]) -> list[_Question]:
    """Returns seeded inputs that the model runs on: one row, and several where it takes them.

    Raises StepFailed where none was found.
    """
    failure, started = "", time.monotonic()
    is_batched = any(spec.shape is None or spec.shape[:1] == (-1,) for spec in specs)
    batches = {spec.dim_names[0] for spec in specs if spec.shape and spec.shape[0] < 0 and spec.dim_names} - {""}
    for sizes, is_random in ((sizes, is_random) for sizes in _SIZES for is_random in (True, False)):
        found: list[_Question] = []
        for rows in _ROWS if is_batched else (1,):
            feed = {spec.name: _value(spec, rows, sizes, batches, is_random=is_random) for spec in specs}
            try:
                session.run(None, feed)
            except Exception as error:
                failure = failure or _reason(error)
                break
            found.append(_Question(rows, feed))
        if found:
            return found
        if time.monotonic() - started > _TRYING_S:
            break
    raise StepFailed(f"it ran on none of the inputs made up for it: {failure}")


def _value(spec: TensorSpec, rows: int, sizes: tuple[int, int], batches: set[str], *, is_random: bool) -> Array:
    """Makes up a value; what is not random is all ones, which sizes, scales and counts may have to be."""
    size, channels = sizes
    dims = spec.shape if spec.shape is not None else (-1, -1)
    names = spec.dim_names if len(spec.dim_names) == len(dims) else ("",) * len(dims)
    shape = [
        dim
        if dim >= 0
        else rows
        if index == 0 or name in batches
        else channels
        if index == 1 and len(dims) == 4
        else size
        for index, (dim, name) in enumerate(zip(dims, names, strict=True))
    ]
    dtype = DTYPES[spec.datatype]
    random = np.random.default_rng(rows)
    if dtype.kind == "O":
        return np.full(shape, "a", object)
    if not is_random:
        return np.ones(shape, dtype)
    if dtype.kind == "f":
        return np.asarray(random.standard_normal(shape)).astype(dtype)
    # Numbers may be indices, of which 0 and 1 are there most often.
    return np.asarray(random.integers(0, 2, shape)).astype(dtype)


def _difference(expected: Any, got: Any) -> float:
    """Returns the largest difference, as a share of the largest number in its tensor.

    Raises StepFailed where answers are not the same.
    """
    if isinstance(expected, (list, tuple)):
        if not isinstance(got, (list, tuple)) or len(got) != len(expected):
            raise StepFailed("an output has not as many parts")
        return max((_difference(*pair) for pair in zip(expected, got, strict=True)), default=0.0)
    if not isinstance(expected, np.ndarray):
        if repr(expected) != repr(got):
            raise StepFailed("an output that is no tensor differs")
        return 0.0
    if not isinstance(got, np.ndarray) or expected.shape != got.shape or expected.dtype != got.dtype:
        raise StepFailed(
            f"output {getattr(got, 'dtype', type(got))} {np.shape(got)}, "
            f"the original gives {expected.dtype} {expected.shape}"
        )
    if expected.dtype.kind not in "fc":
        if not np.array_equal(expected, got):
            raise StepFailed("an output differs")
        return 0.0
    if np.array_equal(expected, got, equal_nan=True):
        return 0.0
    if not np.allclose(got, expected, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True):
        raise StepFailed("an output differs by more than the tolerance")
    is_number = np.isfinite(expected)
    kind = np.complex128 if expected.dtype.kind == "c" else np.float64
    wanted, found = expected[is_number].astype(kind), got[is_number].astype(kind)
    return float(np.abs(found - wanted).max() / max(np.abs(wanted).max(), 1e-30))


# --- the process ---------------------------------------------------------------------------------------


def _end_with_parent(parent: int) -> None:
    """Has the kernel end this process when its parent ends, however that ends."""
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we said so
        os._exit(1)


def _signal_text(number: int) -> str:
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unknown"
    return f"signal {number} ({name})"


def _reason(error: Exception) -> str:
    """One line, with the kind of error where it is not ONNX Runtime's or ours."""
    text = " ".join(str(error).split())[:500]
    is_plain = isinstance(error, StepFailed) or type(error).__module__.startswith("onnxruntime")
    return text if is_plain and text else f"{type(error).__name__}: {text}"


def _check_finding(reason: str, folder: Path, summary: OnnxSummary) -> None:
    """Raises StepFailed where memory or disk ran out: that is no finding about the model, and not for keeps."""
    if is_no_memory(reason) or signal.SIGKILL.name in reason:  # the kernel's, where memory runs out
        raise StepFailed(reason)
    room = shutil.disk_usage(folder).free + sum(_size_bytes(file) for file in folder.rglob("*"))
    wanted = int(summary.weight_bytes * _DISK_FACTOR) + _DISK_BYTES
    if room < wanted:
        raise StepFailed(
            f"{os.strerror(errno.ENOSPC)}: preparing may take {format_bytes(wanted)}, {format_bytes(room)} were free "
            f"({reason})"
        )


def _size_bytes(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def _status(field: str) -> int:
    for line in _status_lines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return 0


def _status_lines() -> Iterator[str]:
    with open("/proc/self/status") as stream:
        yield from stream


def _reset_peak() -> None:
    with contextlib.suppress(OSError):  # without it a fork's peak is that of its life: an upper bound
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main()
