"""What `python -m benchmarks throughput` says rests on: requests, answers, wrk's words, ratios, the picture."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from sizes import FULL

from benchmarks import picture, servers, throughput, wires, workloads, wrk
from benchmarks.__main__ import cli
from benchmarks.client import RequestFailed
from benchmarks.loading import Loader
from benchmarks.peers import catalogue
from benchmarks.servers import WrongAnswer
from benchmarks.throughput import Contestant, Plan, ratio, summarise
from benchmarks.wires import V2, OneTensor
from benchmarks.workloads import Workload
from benchmarks.wrk import Drive

_SAID = """\
Running 1s test @ http://127.0.0.1:1/
  1 threads and 8 connections
  Non-2xx or 3xx responses: 3
{"requests": 200, "duration_us": 2000000, "p50_us": 1500, "p99_us": 4000, "max_us": 9000, \
"connect": 0, "read": 0, "write": 0, "status": 3, "timeout": 0}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    return workloads.make("tiny", cache=tmp_path_factory.mktemp("cache"))


def _drive(rate: float, *, p50_ms: float = 1.0, p99_ms: float = 2.0, errors: dict[str, int] | None = None) -> Drive:
    return Drive(round(rate), 1.0, p50_ms, p99_ms, p99_ms, errors or {})


class TestWorkloads:
    @pytest.mark.parametrize("name", workloads.names())
    def test_a_workload_is_the_same_each_time_and_takes_batches(self, name: str, tmp_path: Path) -> None:
        first, second = (workloads.make(name, cache=tmp_path / folder) for folder in "ab")
        assert first.file.read_bytes() == second.file.read_bytes()
        assert np.array_equal(first.answer, second.answer)
        two = np.concatenate([first.question, first.question / 2])
        answer = ort.InferenceSession(first.file).run(None, {"x": two})[0]
        assert first.is_right(answer[:1])
        assert not first.is_right(answer)
        assert not first.is_right(1 - answer[:1])

    def test_an_unknown_one_is_named_with_those_that_there_are(self) -> None:
        result = CliRunner().invoke(cli, ["throughput", "--only", "huge"])
        assert result.exit_code == 2
        assert "no workload 'huge'; there are tiny, medium" in result.output


class TestWires:
    def test_v2_asks_in_json_and_in_binary(self, tiny: Workload) -> None:
        request = V2().request(tiny, "json")
        assert request.path == "/v2/models/tiny/infer"
        (entry,) = json.loads(request.body)["inputs"]
        assert (entry["name"], entry["shape"], entry["datatype"]) == ("x", [1, 4], "FP32")
        assert np.array_equal(np.array(entry["data"], np.float32), tiny.question[0])
        request = V2().request(tiny, "binary")
        length = int(request.headers["Inference-Header-Content-Length"])
        assert request.body[length:] == tiny.question.tobytes()

    def test_one_tensor_is_a_document_or_bytes(self, tiny: Workload) -> None:
        wire = OneTensor(tiny.answer.shape, "/path")
        request = wire.request(tiny, "json")
        assert request.path == "/path"
        document = json.loads(request.body)
        assert np.array_equal(np.array(document["data"], np.float32).reshape(document["shape"]), tiny.question)
        assert wire.request(tiny, "binary").body == tiny.question.tobytes()

    def test_answers_are_read_in_each_form(self, tiny: Workload) -> None:
        data, shape = tiny.answer.ravel().tolist(), list(tiny.answer.shape)
        document = json.dumps({"outputs": [{"name": "y", "shape": shape, "data": data}]}).encode()
        header = json.dumps({"outputs": [{"name": "y", "shape": shape}]}).encode()
        binary = {"inference-header-content-length": str(len(header))}
        one, as_json = OneTensor(tiny.answer.shape), {"content-type": "application/json"}
        for answer in (
            V2().answer(document, {}),
            V2().answer(header + tiny.answer.tobytes(), binary),
            one.answer(json.dumps({"shape": shape, "data": data}).encode(), as_json),
            one.answer(tiny.answer.tobytes(), {}),
        ):
            assert tiny.is_right(answer)


class TestWrk:
    def test_its_words_are_read(self) -> None:
        drive = wrk.parse(_SAID)
        assert drive == Drive(200, 2.0, 1.5, 4.0, 9.0, {"status": 3})
        assert drive.requests_per_second == 100

    def test_silence_is_told(self) -> None:
        with pytest.raises(RequestFailed, match="unable to connect"):
            wrk.parse("unable to connect to 127.0.0.1:1 Connection refused")

    def test_a_missing_one_says_how_to_get_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PATH", "")
        with pytest.raises(RequestFailed, match="apt-get install wrk"):
            wrk.find()

    def test_the_script_has_the_body_and_the_headers(self, tmp_path: Path) -> None:
        script = wrk.write_script(tmp_path, wires.Request("/", b"\x00\xff", {"Content-Type": 'a "b"'}))
        assert '["Content-Type"] = "a \\"b\\""' in script.read_text()
        assert (tmp_path / "request.body").read_bytes() == b"\x00\xff"


class TestFigures:
    def test_a_ratio_is_the_median_of_the_rounds(self) -> None:
        ours, theirs = [_drive(100), _drive(300), _drive(50)], [_drive(50), _drive(100), _drive(100)]
        assert ratio(ours, theirs) == 2.0  # of 2, 3 and a half: not 100 / 100
        assert ratio(ours, None) is None
        assert ratio(ours, [_drive(0)] * 3) is None

    def test_rows_have_medians_ratios_and_errors(self) -> None:
        samples = {
            "plain": [_drive(1000)] * 3,
            "modelhost": [_drive(rate, p99_ms=rate / 100, errors={"status": 1}) for rate in (400, 800, 600)],
            "hand-written": [_drive(200)] * 3,
        }
        rows = {row["server"]: row for row in summarise(samples)}
        row = rows["modelhost"]
        assert (row["requests"], row["requests_per_second"], row["p99_ms"]) == (1800, 600, 6)
        assert (row["least_per_second"], row["most_per_second"]) == (400, 800)
        assert (row["x_handwritten"], row["x_plain"], row["x_bare"]) == (3.0, 0.6, None)
        assert (row["spread"], row["errors"]) == (6.0, "3 status")
        assert rows["plain"]["errors"] == ""

    def test_every_second_round_goes_backwards_and_slow_ones_are_driven_longer(self) -> None:
        asked: list[tuple[str, int, float]] = []

        def contestant(name: str, once_s: float) -> Contestant:
            def measure(connections: int, seconds: float) -> Drive:
                asked.append((name, connections, seconds))
                return _drive(1)

            return Contestant(name, measure, once_s, lambda: None)

        report = throughput.Report("throughput", {}, sys.stdout)
        both = [contestant("fast", 0.001), contestant("slow", 0.2)]
        samples = throughput._rounds(report, "somewhere", both, 8, Plan(rounds=2, seconds=2))
        assert asked == [("fast", 8, 2), ("slow", 8, 0.2 * 8 * 3), ("slow", 8, 0.2 * 8 * 3), ("fast", 8, 2)]
        assert {name: len(drives) for name, drives in samples.items()} == {"fast": 2, "slow": 2}

    def test_a_quick_run_takes_one_form_and_one_number_of_connections(self, tiny: Workload) -> None:
        quick, full = Plan(rounds=1, seconds=1, is_quick=True), Plan(rounds=1, seconds=1)
        assert (quick.forms_of(tiny), quick.connections_of(tiny)) == (["json"], (8,))
        assert (full.forms_of(tiny), full.connections_of(tiny)) == (["json", "binary"], (1, 8, 32))


class TestServers:
    @pytest.mark.parametrize("form", ["json", "binary"])
    @pytest.mark.parametrize("server", [servers.bare(), servers.handwritten()], ids=lambda server: server.name)
    def test_the_yardsticks_answer_right(self, server: servers.Server, form: str, tiny: Workload) -> None:
        wire = server.wire(tiny, form)
        with server.start(tiny, form) as running:
            servers.wait_until_ready(running, wire.request(tiny, form), wire, tiny)
            servers.wait_for_rest(running)
            other = Workload("tiny", tiny.repository, tiny.question, tiny.answer + 1, ("json",), (1,))
            with pytest.raises(WrongAnswer, match="differs from onnxruntime's"):
                servers.ask(running.url, wire.request(tiny, form), wire, other)
            with pytest.raises(RequestFailed, match=r"^(422|500)"):
                servers.ask(running.url, wires.Request(wire.request(tiny, form).path, b"{", {}), wire, tiny)

    def test_a_server_that_ends_is_told_with_its_last_words(self) -> None:
        command = [sys.executable, "-c", "raise SystemExit('no such thing')"]
        with pytest.raises(RequestFailed, match="no such thing"), servers.running(command, servers.free_port()):
            pass

    def test_the_plain_loop_runs_on_so_many_threads(self, tiny: Workload) -> None:
        with throughput._plain_loops(tiny) as loops:
            for loop in loops:
                assert loop.measure(8, 0.02).requests > 1

    def test_an_error_while_models_load_is_not_lost(self) -> None:
        def drive() -> None:
            with Loader(f"http://127.0.0.1:{servers.free_port()}", ["m000"]):
                pass

        with pytest.raises(RequestFailed, match="ConnectError"):
            drive()


class TestPeers:
    def test_names_are_chosen(self, tmp_path: Path) -> None:
        assert catalogue.choose("all") == ["mlserver", "litserve", "bentoml", "mosec", "ray"]
        assert catalogue.choose("none") == []
        assert catalogue.choose("ray,mosec") == ["ray", "mosec"]
        assert catalogue.choose(None, tmp_path) == []
        with pytest.raises(ValueError, match="no server 'triton'"):
            catalogue.choose("triton")

    def test_each_has_its_program(self) -> None:
        for name in catalogue.PEERS:
            assert (Path(catalogue.__file__).parent / f"{name}.py").is_file()

    def test_each_is_asked_in_its_own_way(self, tiny: Workload) -> None:
        paths = {name: peer.wire(tiny, "json").request(tiny, "json").path for name, peer in catalogue.PEERS.items()}
        assert paths["mlserver"] == "/v2/models/tiny/infer"
        assert paths["mosec"] == "/inference"
        assert paths["litserve"] == paths["bentoml"] == paths["ray"] == "/predict"

    def test_one_that_is_not_installed_says_how(self, tiny: Workload, tmp_path: Path) -> None:
        (server,) = catalogue.servers(["mosec"], cache=tmp_path)
        with pytest.raises(RequestFailed, match="peers --install mosec"), server.start(tiny, "json"):
            pass

    def test_one_that_does_not_speak_a_form_says_so(self, tiny: Workload, tmp_path: Path) -> None:
        environment = catalogue.environment("mlserver", tmp_path)
        environment.mkdir(parents=True)
        (environment / "complete").touch()
        (server,) = catalogue.servers(["mlserver"], cache=tmp_path)
        with pytest.raises(RequestFailed, match="does not speak binary"), server.start(tiny, "binary"):
            pass


class TestPicture:
    def test_it_is_a_document_with_every_server_and_figure(self) -> None:
        drawn = picture.draw(list(_cells()), title="A & B", subtitle="here")
        root = ElementTree.fromstring(drawn)
        texts = ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]
        assert {"A & B", "here", "tiny, json", "large image, binary", "modelhost", "hand-written"} <= set(texts)
        assert "1,200 (3.00\N{MULTIPLICATION SIGN})" in texts
        assert "plain 1,500" in texts  # within reach of the bars
        assert "plain 90,000, beyond" in texts

    def test_a_panel_has_the_host_first_then_the_fastest(self) -> None:
        assert list(picture._servers(list(_cells())[:4])) == ["modelhost", "bare", "hand-written"]


def _cells() -> Iterator[dict[str, object]]:
    for workload, form, plain in (("tiny", "json", 1500), ("large_image", "binary", 90000)):
        rates = {"plain": plain, "hand-written": 400, "bare": 1400, "modelhost": 1200}
        samples = {name: [_drive(rate)] for name, rate in rates.items()}
        for row in summarise(samples):
            yield {"kind": "cell", "workload": workload, "form": form, "connections": 8, **row}


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
@pytest.mark.skipif(not FULL, reason="both cores for ten seconds; MODELHOST_TEST_FULL=1")
def test_a_quick_run_measures_the_host_beside_the_yardsticks(tmp_path: Path) -> None:
    out, drawn = tmp_path / "out.jsonl", tmp_path / "picture.svg"
    options = ("--quick", "--only", "tiny", "--peers", "mosec", "--cache", str(tmp_path))
    result = CliRunner().invoke(cli, ["throughput", *options, "--out", str(out), "--picture", str(drawn)])
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    cells = {row["server"]: row for row in rows if row["kind"] == "cell"}
    assert set(cells) == {"plain", "plain, 1 thread", "modelhost", "bare", "hand-written"}
    assert all(row["requests"] > 10 and row["p99_ms"] >= row["p50_ms"] > 0 for row in cells.values())
    assert cells["modelhost"]["x_bare"] > 0
    (skipped,) = (row for row in rows if row["kind"] == "skipped")
    assert (skipped["server"], "not installed" in skipped["reason"]) == ("mosec", True)
    assert "tiny, json" in drawn.read_text()
