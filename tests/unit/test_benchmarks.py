"""The parts of `benchmarks/` that decide what a result says."""

from __future__ import annotations

import io
import json
import mmap
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from sizes import FULL

from benchmarks import artifacts, estimates, leaks, zoo
from benchmarks.__main__ import cli
from benchmarks.client import RequestFailed, binary_request
from benchmarks.models import CHANNELS_IN, SIZE, Case, ModelSet, Shape, conv_nets, repeat
from benchmarks.pressure import Outcome
from benchmarks.process import running_host
from benchmarks.report import Report, align
from benchmarks.smaps import read_mappings, read_process, read_status, read_traffic
from modelhost.prepare.footprint import RunFootprint, RunPoint, Term
from modelhost.tensors import TensorSpec
from modelhost.testing import cgroup
from modelhost.testing.snapshot import reset_peak

_MB = 1 << 20


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> ModelSet:
    return conv_nets(2, cache=tmp_path_factory.mktemp("models"))


def test_the_reference_agrees_with_onnxruntime(models: ModelSet) -> None:
    for case in models.cases:
        session = ort.InferenceSession(str(models.directory / case.name / "1" / "model.onnx"))
        answer = session.run(None, {"x": case.question})[0]
        assert case.is_right(answer)


def test_models_are_distinct_and_20_mb_large(models: ModelSet) -> None:
    first, second = models.cases
    assert not first.is_right(second.answer)
    assert not first.is_right(None)
    assert not first.is_right(first.answer[:, :-1])
    for file in models.directory.glob("*/*/*.onnx"):
        assert 20 * _MB <= file.stat().st_size < 22 * _MB


def test_models_are_made_once_and_a_smaller_set_has_only_its_own(models: ModelSet) -> None:
    cache = models.directory.parent.parent
    before = {file: file.stat().st_mtime_ns for file in cache.rglob("model.onnx")}
    smaller = conv_nets(1, cache=cache)
    assert [folder.name for folder in smaller.directory.iterdir()] == ["m000"]
    assert before.items() <= {file: file.stat().st_mtime_ns for file in cache.rglob("model.onnx")}.items()


@pytest.mark.parametrize("size_mb", [0.5, 2, 5, 20, 50])
def test_a_shape_has_the_weights_that_were_asked_for(size_mb: float) -> None:
    shape = Shape.of_size(size_mb)
    floats = 9 * shape.channels * (CHANNELS_IN + (shape.layers - 1) * shape.channels)
    assert size_mb <= 4 * floats / _MB < 1.3 * size_mb
    assert shape.channels % 16 == 0


def test_small_models_are_right_too_and_a_labelled_set_is_apart(tmp_path: Path) -> None:
    models = conv_nets(2, size_mb=0.5, cache=tmp_path, label="apart")
    assert models.directory.name == "repository-2-apart"
    for case, file, folder in zip(models.cases, models.files, models.folders, strict=True):
        assert case.is_right(ort.InferenceSession(file).run(None, {"x": case.question})[0])
        assert file.samefile(folder / "model.onnx")


def test_repeat_makes_rows_of_one_question(models: ModelSet) -> None:
    assert repeat(models.cases[0], 3).shape == (3, CHANNELS_IN, SIZE, SIZE)


def test_a_binary_request_says_where_its_header_ends() -> None:
    body, headers = binary_request(np.ones((1, 2), np.float32))
    length = int(headers["Inference-Header-Content-Length"])
    assert json.loads(body[:length])["inputs"][0]["parameters"] == {"binary_data_size": 8}
    assert np.frombuffer(body[length:], np.float32).tolist() == [1, 1]


def test_a_result_says_what_it_is_and_where_it_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    out = io.StringIO()
    report = Report("example", {"limit_bytes": 1}, out)
    report.add("row", usage_bytes=3 * _MB, took_ms=1.25, right=False)
    report.require(False, "it was wrong")
    line = json.loads(out.getvalue())
    assert line["benchmark"] == "example"
    assert line["parameters"] == {"limit_bytes": 1}
    assert {"commit", "machine", "versions", "at"} <= line.keys()
    assert report.violations == ["it was wrong"]
    report.table("row", {"usage_bytes": "usage", "took_ms": "took", "right": "right"})
    assert capsys.readouterr().err.split() == ["usage", "took", "right", "3.0", "MB", "1.2", "ms", "NO"]


def test_columns_line_up() -> None:
    assert align([["a", "bb"], ["ccc", "d"]]) == "a    bb\nccc   d"


def test_percentiles_of_nothing_are_zero() -> None:
    assert Outcome().percentile(0.99) == 0
    assert Outcome([3.0, 1.0, 2.0]).percentile(0.5) == 2.0


def test_failed_and_wrong_answers_are_told_apart() -> None:
    case = Case("m", np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32))
    outcome = Outcome()

    class Wrong:
        def infer(self, model: str, question: np.ndarray) -> np.ndarray:
            return question + 1

    class Failing:
        def infer(self, model: str, question: np.ndarray) -> np.ndarray:
            raise RequestFailed("503")

    outcome.ask(Wrong(), case)  # type: ignore[arg-type]
    outcome.ask(Failing(), case)  # type: ignore[arg-type]
    assert (outcome.requests, outcome.wrong, outcome.failures) == (2, 1, ["m: 503"])


def test_smaps_of_this_process_are_plausible() -> None:
    figures = read_process("self")
    assert 0 < figures.committed_bytes <= figures.rss_bytes
    assert figures.pss_bytes <= figures.rss_bytes


def test_what_the_kernel_keeps_besides_pages_is_read() -> None:
    figures = read_mappings("self")
    assert figures.mappings > 10
    assert figures.page_table_bytes > 0
    assert read_traffic("self").major_faults >= 0
    reset_peak()
    before = read_status("VmRSS")
    with mmap.mmap(-1, 32 * _MB) as taken:  # pages that nobody has had before
        taken.write(b"1" * 24 * _MB)
    assert read_status("VmHWM") - before > 16 * _MB


def test_a_zoo_has_exactly_what_was_asked_for_and_runs(tmp_path: Path) -> None:
    directory = zoo.repository("both", ["attention", "wine"], cache=tmp_path)
    assert {entry.name for entry in directory.iterdir()} == {"attention", "wine"}
    session = ort.InferenceSession(directory / "attention" / "1" / "model.onnx")
    assert session.run(None, {"x": np.ones((2, 5, 64), np.float32)})[0].shape == (2, 5, 64)
    zoo.repository("both", ["wine"], cache=tmp_path)
    assert [entry.name for entry in directory.iterdir()] == ["wine"]


def test_predictions_are_tried_at_sizes_that_were_not_measured() -> None:
    run = RunFootprint(
        terms=(Term(1 << 20, ("batch",)),),
        dims={"batch": (("x", 0),), "steps": (("x", 1),)},
        rows="batch",
        measured=(RunPoint({"batch": 1, "steps": 8}, 1 << 20), RunPoint({"batch": 16, "steps": 8}, 16 << 20)),
    )
    tried = list(estimates._sizes(run))
    assert {"batch": 3, "steps": 8} in tried
    assert {"batch": 16, "steps": 8} not in tried
    assert {"batch": 5, "steps": 100} in tried
    feed = estimates._feed([TensorSpec("x", "FP32", (-1, -1, 4))], run, {"batch": 5, "steps": 100})
    assert feed == {"x": ([5, 100, 4], "FP32")}


def test_a_model_of_one_size_is_tried_at_that() -> None:
    run = RunFootprint(terms=(Term(9.0),), dims={}, measured=(RunPoint({}, 9),))
    assert list(estimates._sizes(run)) == [{}]


def _invoke(*arguments: str, out: Path) -> list[dict[str, Any]]:
    """Runs a benchmark as a user does; returns its results."""
    result = CliRunner().invoke(cli, [*arguments, "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    *rows, outcome = [json.loads(line) for line in out.read_text().splitlines()]
    assert outcome["kind"] == "outcome"
    assert outcome["holds"]
    return rows


def test_prepared_sessions_are_compared_with_stock_ones(tmp_path: Path) -> None:
    rows = _invoke(
        *("prepared", "--model", "conv2", "--loads", "1", "--turns", "1", "--cache", str(tmp_path)),
        out=tmp_path / "out.jsonl",
    )
    load, *runs = rows
    assert load["variant"].startswith("mapped")
    assert load["prepared_bytes"] < load["stock_bytes"]
    assert [row["batch"] for row in runs] == [1, 8]
    assert all(row["prepared_ms"] > 0 and row["stock_ms"] > 0 for row in runs)


@pytest.mark.skipif(not FULL, reason="a host and its children for what `prepared` runs, too; MODELHOST_TEST_FULL=1")
def test_predictions_are_compared_with_what_a_host_measures(tmp_path: Path) -> None:
    rows = _invoke(*("estimates", "--model", "wine", "--cache", str(tmp_path)), out=tmp_path / "out.jsonl")
    assert {row["kind"] for row in rows} == {"load", "run", "total"}
    assert all(row["measured_bytes"] > 0 for row in rows if row["kind"] == "load")


def test_preparing_that_fails_is_reported_with_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.onnx").write_bytes(b"no model")
    with pytest.raises(RequestFailed, match="broken"):
        artifacts.prepare(tmp_path, progress=lambda text: None)


def test_a_host_that_cannot_start_is_reported_with_its_own_words(tmp_path: Path) -> None:
    with pytest.raises(RequestFailed, match="does not exist"), running_host(tmp_path / "nowhere"):
        pass


def test_an_operation_that_leaks_is_a_violation_and_so_is_one_that_is_not_tried() -> None:
    report, kept = Report("leaks", {}, io.StringIO()), []
    leaks._try(report, leaks.Operation("Python", "keeps", lambda: kept.append(bytes(2000))), 40)
    leaks._try(report, leaks.Operation("Python", "keeps nothing", lambda: bytes(2000)), 40)
    assert [row["leaks"] for row in report.rows] == ["yes", "no"]
    (violation,) = report.violations
    assert violation.startswith("keeps: leak")
    assert leaks.not_tried({"/a": {"get": {}, "post": {}}}, [leaks.Operation("HTTP", "GET /a", bytes)]) == ["POST /a"]


def test_help_lists_every_command_and_imports_nothing_to_measure_with() -> None:
    code = (
        "import sys; from click.testing import CliRunner; from benchmarks.__main__ import cli; "
        "print(CliRunner().invoke(cli, ['--help']).output); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    shown, modules = done.stdout.rsplit("\n", 2)[:2]
    assert all(f"\n  {command} " in shown for command in cli.commands)
    assert not {"numpy", "httpx", "onnxruntime"} & set(modules.split())


@pytest.mark.parametrize("command", sorted(cli.commands))
def test_every_command_explains_itself(command: str) -> None:
    result = CliRunner().invoke(cli, [command, "--help"])
    assert result.exit_code == 0
    assert "Usage:" in result.output


@pytest.mark.cgroup
@pytest.mark.skipif(cgroup.available() is not None, reason=str(cgroup.available()))
class TestCgroup:
    def test_a_child_within_the_limit_ends_well_and_is_counted(self) -> None:
        with cgroup.MemoryCgroup(64 * _MB) as group:
            code = "x = bytearray(20 << 20); print(open('/proc/self/cgroup').read())"
            done = subprocess.run(
                group.command([sys.executable, "-c", code]), capture_output=True, text=True, check=True
            )
            assert group.path.name in done.stdout
            figures = group.read()
            assert 20 * _MB < figures.peak_bytes <= 64 * _MB
            assert figures.oom_kills == 0
            path = group.path
        assert not path.exists()

    def test_a_child_beyond_the_limit_is_killed_and_that_is_counted(self) -> None:
        with cgroup.MemoryCgroup(32 * _MB) as group:
            done = subprocess.run(
                group.command([sys.executable, "-c", "x = bytearray(64 << 20)"]), capture_output=True, check=False
            )
            assert done.returncode == -9
            assert group.read().oom_kills == 1

    def test_many_models_are_held_where_a_plain_loop_holds_few(self, tmp_path: Path) -> None:
        # The third load alone has more at its peak, beside the two, than the group may have.
        rows = _invoke(
            *("density", "--small", "--models", "3", "--limit", "112MB", "--cache", str(tmp_path)),
            out=tmp_path / "out.jsonl",
        )
        held = {row["server"]: row for row in rows if row["kind"] == "held"}
        assert held["modelhost, prepared"]["held"] == held["modelhost, prepared"]["right"] == 3
        assert 0 < held["onnxruntime"]["held"] < 3
        assert held["onnxruntime"]["oom_kills"] == 1

    def test_what_still_runs_at_the_end_is_ended(self) -> None:
        with cgroup.MemoryCgroup(32 * _MB) as group:
            command = group.command(["/bin/sh", "-c", "echo inside; exec sleep 100"])
            child = subprocess.Popen(command, stdout=subprocess.PIPE)
            assert child.stdout is not None
            assert child.stdout.readline() == b"inside\n"
            assert group.pids() == [child.pid]
        with child:
            assert child.wait() == -9
        assert not group.path.exists()
