"""Worker processes with ONNX Runtime in them: runs, and every way in which one can end."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models_for_tests as build
import numpy as np
import pytest

from modelhost.config import ModelOptions, RuntimeSettings
from modelhost.errors import (
    ConfigError,
    DeadlineExceeded,
    InvalidRequest,
    InvalidTensor,
    Overloaded,
    RunTooLarge,
    WorkerCrashed,
    WorkerRestarting,
)
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.repository import read_summary
from modelhost.runtime.base import CancelToken, Inspection, LoadError, LoadPlan
from modelhost.runtime.worker import nursery
from modelhost.runtime.worker import workers as isolation
from modelhost.runtime.worker.model import IsolatedModel
from modelhost.runtime.worker.segment import Segment
from modelhost.runtime.worker.session import CannotOpen, WorkerDied
from modelhost.runtime.worker.workers import Workers
from modelhost.tensors import DTYPES, from_bfloat16, to_bfloat16

_MB = 1 << 20
_CEILING = 32 * _MB

#: What a first number of an input does to the worker that runs on it: real ends of a real process. Only the cause is
#: made up: a model that does the same cannot be had on every version of ONNX Runtime.
_ODD_TEMPLATE = """
import ctypes, os, sys, time
from modelhost.runtime.worker import process, template
really = process._Worker._run
def run(self, names, feeds, options):
    match float(next(iter(feeds.values())).flat[0]):
        case 11.0: ctypes.string_at(0)
        case 9.0: os.kill(os.getpid(), 9)
        case 3.0: os._exit(3)
        case 60.0: time.sleep(60)
    return really(self, names, feeds, options)
process._Worker._run = run
def answered(self, message, really=process._Channel._answered):
    number = float(process.read(message["feeds"][0][1], self._segment.bytes)[1].flat[0])
    answer = really(self, message)
    match number:
        case 70.0: return {"done": "nonsense"}
        case 71.0: return {"done": [["FP32", [1 << 40], 0, 1 << 42]]}
        case 72.0: return {"room": 1 << 60}
        case 73.0: return {"done": [["INT8", [1], 0, 1]]}
        case 74.0: os.write(self._connection.fileno(), b"nonsense"); time.sleep(60)
    return answer
process._Channel._answered = answered
def load(self, job, _, really=process._Worker.load):
    match os.path.basename(os.path.dirname(os.path.dirname(job["file"]))):
        case "segfaults": ctypes.string_at(0)
        case "exits": os._exit(3)
        case "hangs": time.sleep(60)
        case "talks": return {"loaded": {"inputs": [1], "outputs": []}}
    return really(self, job, _)
process._Worker.load = load
template.main()
"""


def inspected(file: Path, run: RunFootprint | None) -> Inspection:
    summary = read_summary(file)
    plan = LoadPlan(_MB, _MB, run=run)
    inputs, outputs = ({spec.name: spec for spec in specs} for specs in (summary.inputs, summary.outputs))
    return Inspection(inputs, outputs, plan, (1,))


class Stage:
    """Workers, and models in them."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.directory = directory
        self.workers = Workers(RuntimeSettings(isolation="process", **settings), ceiling_bytes=_CEILING)
        self.models: list[IsolatedModel] = []

    def load(
        self, model: Any, name: str = "model", cancel: CancelToken | None = None, run: RunFootprint | None = None
    ) -> IsolatedModel:
        file = build.save(model, self.directory, name)
        inspection = self.workers.planned(inspected(file, run), ModelOptions())
        assert inspection.plan is not None
        loaded = self.workers.load(
            file, inspection.plan, inspection, cancel or CancelToken(), mapped=(), closed=lambda: None
        )
        self.models.append(loaded)
        return loaded

    def close(self) -> None:
        for model in self.models:
            model.close()
        self.workers.close()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Workers as they are."""
    stage = Stage(tmp_path_factory.mktemp("workers"))
    yield stage
    stage.close()


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Workers that end, hang and talk nonsense as their input says."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "odd_template.py").write_text(_ODD_TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nursery, "_TEMPLATE", "odd_template")
        patch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
        stage = Stage(folder, stop_grace=0.1)
        stage.workers.warm_up()
    yield stage
    stage.close()


def add(model: IsolatedModel, number: float = 1.0, cancel: CancelToken | None = None) -> float:
    (array,) = model.run({"x": np.float32([number])}, ["y"], cancel)
    return float(array[0])


def ends(model: IsolatedModel) -> Callable[[], str]:
    """Returns what waits for the end of a model's worker, and returns the reason."""
    ended, reasons = threading.Event(), list[str]()

    def on_end(reason: str) -> None:
        reasons.append(reason)
        ended.set()

    model.watch(on_end)

    def wait() -> str:
        assert ended.wait(10)
        return reasons[0]

    return wait


def pid_of(model: IsolatedModel) -> int:
    return model._session.worker.pid


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


# --- runs ------------------------------------------------------------------------------------------------------


def test_a_model_answers_from_a_process_of_its_own(stage: Stage) -> None:
    model = stage.load(build.add_constant(2))
    assert add(model, 5) == 7
    assert model.is_isolated
    assert (model.inputs["x"].shape, model.outputs["y"].datatype) == ((-1,), "FP32")
    assert is_there(pid_of(model))
    assert pid_of(model) != os.getpid()


def test_every_datatype_crosses_both_ways(stage: Stage) -> None:
    model = stage.load(build.every_type(), "types")
    feeds = {name: np.array([1, 0, 1]).astype(DTYPES[spec.datatype]) for name, spec in model.inputs.items()}
    feeds["bytes"] = np.array(["a", "", "ü" * 1000], np.object_)
    names = list(model.outputs)
    for name, array in zip(names, model.run(feeds, names, None), strict=True):
        np.testing.assert_array_equal(array, feeds[name.removeprefix("same_")])
        assert array.dtype == feeds[name.removeprefix("same_")].dtype


def test_bfloat16_and_outputs_that_are_no_tensors_cross(stage: Stage) -> None:
    half = stage.load(build.dense_bf16(4), "half")
    sent = to_bfloat16([[1, 2, 3, 4]])
    (got,) = half.run({"x": sent}, ["y"], None)
    assert from_bfloat16(got).tolist() == [[2, 4, 6, 8]]
    classifier = stage.load(build.zip_map(["no", "yes"]), "zip")
    label, maps = classifier.run({"x": np.float32([[0.25, 0.75]])}, ["label", "probabilities"], None)
    assert label.tolist() == [1]
    assert maps.tolist() == [{"no": 0.25, "yes": 0.75}]


def test_large_outputs_are_seen_in_place_and_nobody_writes_over_them(stage: Stage) -> None:
    model = stage.load(build.add_constant(1), "large")
    many = np.arange(1_000_000, dtype=np.float32)
    (first,) = model.run({"x": many}, ["y"], None)
    (second,) = model.run({"x": many * 2}, ["y"], None)
    assert not first.flags.owndata
    np.testing.assert_array_equal(first, many + 1)
    np.testing.assert_array_equal(second, many * 2 + 1)
    held = stage.workers.held_bytes()
    del first, second
    stage.workers.trim()
    assert stage.workers.held_bytes() <= held - many.nbytes


def test_outputs_that_are_kept_for_long_take_a_bounded_number_of_channels(stage: Stage) -> None:
    model = stage.load(build.add_constant(1), "kept")
    many = np.zeros(10_000, np.float32)
    kept = [model.run({"x": many + number}, ["y"], None)[0] for number in range(20)]
    assert [float(array[0]) for array in kept] == [number + 1 for number in range(20)]
    assert len(model._session._all) < 12
    del kept
    assert len(model._session._all) <= 4


def test_a_run_without_a_descriptor_for_it_is_told_to_come_again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    model = stage.load(build.add_constant(1), "descriptors")

    def none_left(wanted_bytes: int) -> Segment:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Segment, "create", none_left)
    with pytest.raises(Overloaded, match="Too many open files"):
        add(model)
    monkeypatch.undo()
    assert add(model) == 2
    monkeypatch.setattr(Segment, "create", none_left)
    with pytest.raises(Overloaded, match="Too many open files"):  # in the middle of a run
        model.run({"x": np.zeros(100_000, np.float32)}, ["y"], None)
    monkeypatch.undo()
    assert add(model) == 2


def test_outputs_larger_than_the_inputs_get_their_room(stage: Stage) -> None:
    model = stage.load(build.expand_bf16(), "expand")
    (got,) = model.run({"x": to_bfloat16([3]), "times": np.int64([200_000])}, ["y"], None)
    assert got.shape == (200_000,)
    assert set(from_bfloat16(got).tolist()) == {3.0}


def test_runs_of_several_threads_do_not_mix(stage: Stage) -> None:
    model = stage.load(build.add_constant(1), "threads")
    wrong: list[float] = []

    def work(start: int) -> None:
        wrong.extend(number for number in range(start, start + 100) if add(model, number) != number + 1)

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_errors_are_the_same_as_in_the_host(stage: Stage) -> None:
    model = stage.load(build.two_inputs(), "sum")
    with pytest.raises(InvalidTensor, match="'n' = 2"):
        model.run({"a": np.ones(2, np.float32), "b": np.ones(3, np.float32)}, ["y"], None)
    with pytest.raises(InvalidRequest, match="ONNX Runtime refuses the input"):
        model.run({"a": np.ones(2, np.int8), "b": np.ones(2, np.float32)}, ["y"], None)
    large = stage.load(build.add_constant(1), "ceiling")
    with pytest.raises(RunTooLarge, match=r"32\.0 MB"):
        large.run({"x": np.ones(10 * _MB, np.float32)}, ["y"], None)
    assert add(large) == 2


def test_what_cannot_be_opened_says_why_and_leaves_no_worker(stage: Stage) -> None:
    before = stage.workers._nursery._template.workers()
    with pytest.raises(CannotOpen, match="NoSuchOperator"):
        stage.load(build.unknown_operator(), "unknown")
    assert stage.workers._nursery._template.workers() == before


# --- memory ----------------------------------------------------------------------------------------------------


def test_an_unload_ends_the_process_and_its_memory_is_back(stage: Stage) -> None:
    before = stage.workers.held_bytes()
    model = stage.load(build.heavy(20), "heavy")
    held = stage.workers.held_bytes() - before
    assert held > 4 * _MB  # equal weights are kept once
    pid, wait = pid_of(model), ends(model)
    model.close()
    stage.models.remove(model)
    assert not is_there(pid)
    assert abs(stage.workers.held_bytes() - before) < _MB
    assert not wait.__closure__[0].cell_contents.is_set()  # no crash: nobody is told


def test_runs_leave_nothing_large_behind(stage: Stage) -> None:
    model = stage.load(build.add_constant(1), "leaves")
    add(model)
    before = stage.workers.held_bytes()
    for _ in range(2):
        model.run({"x": np.ones(4 * _MB, np.float32)}, ["y"], None)
    assert stage.workers.held_bytes() - before < 3 * _MB
    stage.workers.trim()
    assert stage.workers.held_bytes() - before < _MB


def test_a_plan_has_what_the_worker_adds(stage: Stage, tmp_path: Path) -> None:
    file = build.save(build.add_constant(1), tmp_path, "a")
    known = inspected(file, RunFootprint((Term(100.0), Term(4.0, ("n",))), {"n": (("x", 0),)}, rows="n"))
    plan = stage.workers.planned(known, ModelOptions()).plan
    assert plan is not None
    assert plan.is_isolated
    assert plan.resident_bytes == _MB + isolation.WORKER_BYTES
    assert plan.run is not None
    assert plan.run.predict({"x": (1000,)}) == 100 + 3 * 4000  # activations, input and output once more
    unknown = stage.workers.planned(inspected(file, None), ModelOptions()).plan
    assert unknown is not None
    assert unknown.run is not None
    assert unknown.run.predict({"x": (1,)}) == _CEILING
    assert stage.workers.planned(known, ModelOptions(isolation="none")) is known


def test_a_system_without_shared_memory_is_told_so(stage: Stage, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ConfigError, match=r'isolation = "process" needs Linux .* this is darwin'):
        isolation.check_supported()
    file = build.save(build.add_constant(1), tmp_path, "a")
    with pytest.raises(LoadError, match="needs Linux"):
        stage.workers.planned(inspected(file, None), ModelOptions())


# --- ends ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (11, r"it ended with signal 11 \(SIGSEGV\)"),
        (9, r"it ended with signal 9 \(SIGKILL\)"),
        (3, "it ended with status 3"),
        (70, "could not be understood: this is no answer to a run with 1 outputs"),
        (71, "could not be understood: this is no place of a tensor"),
        (72, "could not be understood: there is no room of"),
        (73, "it answered INT8 for 'y', which is FP32"),
        (74, "could not be understood: what came is no JSON"),
    ],
)
def test_however_a_worker_ends_its_run_has_the_reason_and_the_others_go_on(
    odd: Stage, number: float, reason: str
) -> None:
    model, other = odd.load(build.add_constant(1), "ends"), odd.load(build.add_constant(2), "other")
    assert add(model) == 2
    wait, pid = ends(model), pid_of(model)
    with pytest.raises(WorkerCrashed, match=reason):
        add(model, number)
    assert wait() == model._session.worker.reason()
    assert not is_there(pid)  # no zombie either
    with pytest.raises(WorkerRestarting):
        add(model)
    assert add(other) == 3
    model.close()
    odd.models.remove(model)


def test_a_run_that_cannot_be_stopped_ends_with_its_worker(odd: Stage) -> None:
    model, cancel = odd.load(build.add_constant(1), "deaf"), CancelToken()
    wait, timer = ends(model), threading.Timer(0.02, cancel.cancel)
    timer.start()
    with pytest.raises(DeadlineExceeded):
        add(model, 60, cancel)
    assert "a run went on for 0.1 s after it was to stop" in wait()


def test_a_run_that_can_be_stopped_is(stage: Stage) -> None:
    model, cancel = stage.load(build.heavy(64, layers=64), "stopped"), CancelToken()
    side = model.inputs["x"].shape[1]
    timer = threading.Timer(0.05, cancel.cancel)
    timer.start()
    with pytest.raises(DeadlineExceeded):
        model.run({"x": np.ones((3000, side), np.float32)}, ["y"], cancel)
    model.run({"x": np.ones((1, side), np.float32)}, ["y"], CancelToken())
    early = CancelToken()
    early.cancel()
    with pytest.raises(DeadlineExceeded):
        model.run({"x": np.ones((1, side), np.float32)}, ["y"], early)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("segfaults", r"ended while it opened the model: it ended with signal 11 \(SIGSEGV\)"),
        ("exits", "it ended with status 3"),
        ("talks", "could not be understood: this is no input or output"),
    ],
)
def test_a_worker_that_ends_while_it_opens_is_a_failed_load(odd: Stage, name: str, reason: str) -> None:
    with pytest.raises(WorkerDied, match=reason):
        odd.load(build.add_constant(1), name)


def test_a_load_that_hangs_ends_when_it_is_cancelled(odd: Stage) -> None:
    cancel = CancelToken()
    timer = threading.Timer(0.05, cancel.cancel)
    timer.start()
    with pytest.raises(WorkerDied, match="its load was cancelled, or took too long"):
        odd.load(build.add_constant(1), "hangs", cancel)


def test_workers_get_nothing_of_the_hosts(stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELHOST_SECRET", "key")
    with open(tmp_path / "open", "w") as secret:
        os.set_inheritable(secret.fileno(), True)
        fresh = Stage(tmp_path)
        model = fresh.load(build.add_constant(1))
        pid = pid_of(model)
        names = {os.readlink(f"/proc/{pid}/fd/{entry}") for entry in os.listdir(f"/proc/{pid}/fd")}
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        fresh.close()
    assert b"MODELHOST" not in environment
    assert str(tmp_path / "open") not in names
    assert sum(name.startswith("socket:") for name in names) <= 1  # the one to the host


def test_a_template_that_is_killed_takes_its_workers_along_and_another_one_starts(tmp_path: Path) -> None:
    stage = Stage(tmp_path)
    model = stage.load(build.add_constant(1))
    wait, pid = ends(model), pid_of(model)
    os.kill(stage.workers._nursery._template.pid, signal.SIGKILL)
    assert wait() == "it ended with the process that it was forked from"
    with pytest.raises(WorkerRestarting):
        add(model)
    again = stage.load(build.add_constant(3), "again")
    assert add(again) == 4
    assert not is_there(pid) or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"  # init's to reap, not ours
    stage.close()


_HOST = """
import sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_workers import Stage, build, pid_of
stage = Stage(Path({folder!r}))
model = stage.load(build.add_constant(1))
print(stage.workers._nursery._template.pid, pid_of(model), flush=True)
time.sleep(60)
"""


def test_a_host_that_is_killed_leaves_nobody_behind(tmp_path: Path) -> None:
    code = _HOST.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    host = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, text=True
    )
    assert host.stdout is not None
    with host.stdout:
        pids = [int(pid) for pid in host.stdout.readline().split()]
        assert len(pids) == 2
        host.kill()
        host.wait()
    end = time.monotonic() + 10
    while any(is_there(pid) and "Z" not in Path(f"/proc/{pid}/stat").read_text().split() for pid in pids):
        assert time.monotonic() < end
        time.sleep(0.005)
