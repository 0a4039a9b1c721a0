"""The commands as a person types them: in process, or against the session's running host."""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from host_process import MODELS, HostProcess
from models_for_tests import dense_bf16, save, zip_map

from modelhost.cli.main import main


class Ended(NamedTuple):
    status: int
    out: str
    err: str


class Terminal:
    """Runs commands in an empty directory and returns how they ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *arguments: str) -> Ended:
        root = logging.getLogger()
        handlers, level = root.handlers[:], root.level
        try:
            with pytest.raises(SystemExit) as ended:
                main([str(argument) for argument in arguments])
        finally:  # `serve` logs to this test's standard error, which is closed after it
            root.handlers[:] = handlers
            root.setLevel(level)
        out, err = self._capsys.readouterr()
        return Ended(int(ended.value.code or 0), out, err)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MODELHOST_URL", raising=False)
    return Terminal(capsys)


@pytest.fixture(params=["in process", "against a host"])
def where(request: pytest.FixtureRequest, host_process: HostProcess) -> list[str]:
    """The flags that say where the model runs: the same command has to give the same answer."""
    return ["--models", str(MODELS)] if request.param == "in process" else ["--url", host_process.url]


PIXELS = np.arange(64, dtype=np.float32) % 17


# --- help ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["serve", "models", "infer", "memory", "keys"])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_each_command_explains_itself(run: Terminal, command: str, flag: str) -> None:
    ended = run(command, flag)
    assert ended.status == 0
    assert ended.out.startswith(f"Usage: modelhost {command} [OPTIONS]")
    assert ended.err == ""


def test_help_lists_the_commands(run: Terminal) -> None:
    ended = run("--help")
    assert ended.status == 0
    for command in ("serve", "models", "infer", "memory"):
        assert f"\n  {command} " in ended.out


def test_the_version_is_the_packages(run: Terminal) -> None:
    from modelhost import __version__

    assert run("--version").out == f"modelhost, version {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["frobnicate"], ["infer"], ["memory", "--events", "-1"], ["serve", "--port", "x"]]
)
def test_a_wrong_command_line_is_status_2_with_a_hint(run: Terminal, arguments: list[str]) -> None:
    ended = run(*arguments)
    assert ended.status == 2
    assert "Error: " in ended.err


# --- models --------------------------------------------------------------------------------------------------


def test_serve_has_its_threads_take_short_turns(run: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intervals_s: list[float] = []
    monkeypatch.setattr(sys, "setswitchinterval", intervals_s.append)
    assert run("serve", "--models", str(tmp_path / "missing")).status != 0
    assert intervals_s == [0.0005]


def test_models_lists_names_versions_inputs_and_outputs(run: Terminal) -> None:
    ended = run("models", "--models", MODELS)
    assert ended.status == 0
    lines = ended.out.splitlines()
    assert lines[0].split() == ["model", "version", "weights", "inputs", "outputs"]
    assert [line.split()[0] for line in lines if line.startswith(("digits", "iris", "wine"))] == [
        "digits",
        "iris_petals",
        "wine",
    ]
    assert "image: FP32 [batch,1,8,8]" in ended.out
    assert "species: BYTES [batch,1]" in ended.out


def test_models_are_json_lines_for_programs(run: Terminal) -> None:
    ended = run("models", "--models", MODELS, "--json", "wine")
    (entry,) = [json.loads(line) for line in ended.out.splitlines()]
    assert (entry["name"], entry["version"]) == ("wine", "1")
    assert entry["inputs"] == [{"name": "measurements", "datatype": "FP32", "shape": [-1, 13]}]


def test_models_reports_what_is_broken_and_lists_the_others(run: Terminal, tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    (repository / "empty").mkdir(parents=True)
    (repository / "torn").mkdir()
    (repository / "torn" / "model.onnx").write_bytes((MODELS / "wine" / "1" / "model.onnx").read_bytes()[:1000])
    (repository / "digits").symlink_to(MODELS / "digits")
    ended = run("models", "--models", repository)
    assert ended.status == 1
    assert "digits" in ended.out
    assert "broken: empty: " in ended.err
    assert "broken: torn 1: " in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--models", "nowhere"], "the model directory 'nowhere' does not exist"),
        (["--models", str(MODELS), "digit"], "no model 'digit'; did you mean 'digits'?"),
        (["--config", "nowhere.toml"], "cannot read the settings file nowhere.toml"),
    ],
)
def test_models_that_cannot_be_listed_are_one_line_and_status_1(
    run: Terminal, arguments: list[str], words: str
) -> None:
    ended = run("models", *arguments)
    assert ended.status == 1
    assert ended.err.startswith(f"modelhost: {words}")
    assert len(ended.err.splitlines()) == 1


def test_an_empty_directory_has_no_models_and_says_what_was_expected(run: Terminal, tmp_path: Path) -> None:
    ended = run("models", "--models", tmp_path)
    assert ended.status == 0
    assert "expected <name>/<version>/model.onnx or <name>.onnx" in ended.out


# --- infer ---------------------------------------------------------------------------------------------------


def _write(directory: Path, kind: str) -> list[str]:
    """Writes the same image in one of the forms that `infer` takes; returns the arguments for it."""
    image = PIXELS.reshape(1, 1, 8, 8)
    entry: dict[str, Any] = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": PIXELS.tolist()}
    match kind:
        case "request.json":
            (directory / kind).write_text(json.dumps({"inputs": [entry]}))
        case "nested.json":
            (directory / kind).write_text(json.dumps({"image": image.tolist()}))
        case "flat.json":
            (directory / kind).write_text(json.dumps({"image": PIXELS.tolist()}))
        case "image.npy":
            np.save(directory / kind, image)
        case "row.npy":
            np.save(directory / kind, image[0].astype(np.int64))
        case "inputs.npz":
            np.savez(directory / kind, image=image)
        case "inline":
            return ["--set", f"image={PIXELS.tolist()}"]
        case "inline file":
            np.save(directory / "image.npy", image)
            return ["--set", "image=@image.npy"]
    return ["--file", kind]


@pytest.mark.parametrize(
    "kind",
    ["request.json", "nested.json", "flat.json", "image.npy", "row.npy", "inputs.npz", "inline", "inline file"],
)
def test_infer_takes_inputs_in_any_form(run: Terminal, where: list[str], tmp_path: Path, kind: str) -> None:
    ended = run("infer", "digits", *_write(tmp_path, kind), *where)
    assert ended.status == 0, ended.err
    (logits,) = json.loads(ended.out)["outputs"]
    assert (logits["name"], logits["datatype"], logits["shape"]) == ("logits", "FP32", [1, 10])
    expected = run("infer", "digits", *_write(tmp_path, "image.npy"), "--models", MODELS)
    assert np.allclose(logits["data"], json.loads(expected.out)["outputs"][0]["data"], atol=1e-5)


def test_infer_takes_and_gives_texts(run: Terminal, where: list[str]) -> None:
    ended = run("infer", "iris_petals", "--set", 'species=["setosa"]', "--set", "sepal=[5.1, 3.4]", *where)
    (petal,) = json.loads(ended.out)["outputs"]
    assert np.allclose(petal["data"], [1.5, 0.25], atol=0.1)
    ended = run("infer", "iris_petals", "--set", "species=setosa", "--set", "sepal=[5.1, 3.4]", *where)
    assert json.loads(ended.out)["outputs"] == [petal]
    ended = run("infer", "wine", "--set", f"measurements={[0] * 13}", *where)
    label, probabilities = json.loads(ended.out)["outputs"]
    assert label["data"][0].startswith("class_")
    assert sum(probabilities["data"]) == pytest.approx(1, abs=1e-5)


def test_infer_takes_several_rows(run: Terminal, where: list[str]) -> None:
    ended = run("infer", "wine", "--set", f"measurements={[0] * 26}", "--version", "1", *where)
    assert json.loads(ended.out)["outputs"][0]["shape"] == [2]


def test_infer_takes_and_gives_what_has_no_numbers_of_its_own_in_json(run: Terminal, tmp_path: Path) -> None:
    save(dense_bf16(4), tmp_path, "half")
    save(zip_map(["a", "b"]), tmp_path, "classifier")
    here = ("--models", str(tmp_path))
    (doubled,) = json.loads(run("infer", "half", "--set", "x=[1, 2, 3, 4]", *here).out)["outputs"]
    assert doubled == {"name": "y", "datatype": "BF16", "shape": [1, 4], "data": [2, 4, 6, 8]}
    _, probabilities = json.loads(run("infer", "classifier", "--set", "x=[0.25, 0.75]", *here).out)["outputs"]
    assert probabilities["datatype"] == "BYTES"
    assert [json.loads(text) for text in probabilities["data"]] == [{"a": 0.25, "b": 0.75}]
    assert run("infer", "half", "--set", "x=[1, 2, 3, 4]", "--output", "half.npz", *here).status == 0
    with np.load(tmp_path / "half.npz") as arrays:
        assert (arrays["y"].dtype, arrays["y"].tolist()) == (np.float32, [[2, 4, 6, 8]])
    assert run("infer", "classifier", "--set", "x=[1, 0]", "--output", "texts.npz", *here).status == 0
    with np.load(tmp_path / "texts.npz") as arrays:
        assert json.loads(arrays["probabilities"][0]) == {"a": 1, "b": 0}


def test_infer_writes_arrays_where_asked_to(run: Terminal, where: list[str], tmp_path: Path) -> None:
    ended = run("infer", "wine", "--set", f"measurements={[0] * 13}", "--output", "answer.npz", *where)
    assert (ended.status, ended.out) == (0, "")
    assert ended.err == "wrote label, probabilities to answer.npz\n"
    with np.load(tmp_path / "answer.npz") as arrays:
        assert arrays["probabilities"].shape == (1, 3)
        assert arrays["label"][0].startswith("class_")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "no inputs given: use --file or --set for 'image' FP32 ["),
        (["--set", "picture=1"], "unknown input 'picture'; the model's inputs are 'image' FP32 ["),
        (["--set", "image"], "--set: expected INPUT=VALUES, got 'image'"),
        (["--set", "image=5"], ",1,8,8], got shape []"),
        (["--set", "image=seven"], "input 'image': expected FP32 ["),
        (["--set", "image=@nowhere.npy"], "cannot read nowhere.npy"),
        (["--file", "nowhere.json"], "'nowhere.json' does not exist"),
        (["--file", "odd.txt"], "--file: expected .json, .npy or .npz, got odd.txt"),
        (["--file", "list.json"], "list.json: expected a JSON object, got list"),
        (["--file", "torn.json"], "torn.json is not JSON"),
    ],
)
def test_wrong_inputs_are_status_2_and_say_what_was_expected(
    run: Terminal, where: list[str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    (tmp_path / "odd.txt").touch()
    (tmp_path / "list.json").write_text("[1]")
    (tmp_path / "torn.json").write_text("{")
    ended = run("infer", "digits", *arguments, *where)
    assert ended.status == 2
    assert words in " ".join(ended.err.split())
    assert ended.out == ""


def test_an_array_for_a_model_with_several_inputs_is_refused(run: Terminal, where: list[str], tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", PIXELS)
    ended = run("infer", "iris_petals", "--file", "one.npy", *where)
    assert ended.status == 2
    assert "the model has 2 inputs: use .npz or --set" in ended.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing", "--set", "x=1"], "no model 'nothing'"),
        (["digits", "--version", "9", "--set", "image=1"], "model 'digits' has no version '9'; it has 1"),
    ],
)
def test_an_unknown_model_is_status_1_and_one_line(
    run: Terminal, where: list[str], arguments: list[str], words: str
) -> None:
    ended = run("infer", *arguments, *where)
    assert ended.status == 1
    assert words in ended.err
    assert len(ended.err.splitlines()) == 1


# --- memory --------------------------------------------------------------------------------------------------


def test_memory_shows_figures_models_and_events(run: Terminal, host_process: HostProcess) -> None:
    run("infer", "wine", "--set", f"measurements={[0] * 13}", "--url", host_process.url)
    ended = run("memory", "--url", host_process.url)
    assert ended.status == 0
    assert "of 400.0 MB (setting) in use" in ended.out
    assert "w warning" in ended.out
    assert "model" in ended.out
    assert "wine" in ended.out


def test_memory_is_the_hosts_own_json_for_programs(
    run: Terminal, host_process: HostProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELHOST_URL", host_process.url)
    body = json.loads(run("memory", "--json").out)
    assert body["limit_bytes"] == 400 << 20
    assert {"usage_bytes", "level", "models", "events"} <= body.keys()


def test_memory_can_clean_up_first(run: Terminal, host_process: HostProcess) -> None:
    run("infer", "wine", "--set", f"measurements={[0] * 13}", "--url", host_process.url)
    body = json.loads(run("memory", "--cleanup", "--json", "--url", host_process.url).out)
    assert body["models"] == []
    ended = run("memory", "--url", host_process.url, "--events", "1")
    assert "recovery: level normal" in ended.out


@pytest.mark.parametrize("command", [["memory"], ["infer", "digits", "--set", "image=1"]])
@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "http://nowhere.invalid", "127.0.0.1:8080"])
def test_a_host_that_does_not_answer_is_one_line_that_says_what_to_do(
    run: Terminal, command: list[str], url: str
) -> None:
    ended = run(*command, "--url", url)
    assert ended.status == 1
    assert ended.err.startswith(f"Error: no host answers at {url} (")
    assert "start one with `modelhost serve`, or name it with --url" in ended.err
    assert len(ended.err.splitlines()) == 1
