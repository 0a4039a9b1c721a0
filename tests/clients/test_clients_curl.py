"""curl, which sends what no library would: raw tensors, chunks, compressed files, an Expect before large bodies."""

from __future__ import annotations

import gzip
import json
import subprocess
import zlib
from pathlib import Path

import numpy as np
import pytest
from host_process import HostProcess

pytestmark = pytest.mark.late

VALUES = np.arange(6, dtype="<f4")
REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [6], "data": VALUES.tolist()}]}


def curl(directory: Path, url: str, *arguments: str, body: bytes = b"") -> tuple[int, dict[str, str], bytes]:
    """Returns status, headers and body of what `curl ARGUMENTS URL` gets; `body` is what `@body` stands for."""
    (directory / "body").write_bytes(body)
    command = ["curl", "-sS", "--max-time", "30", "-D", "headers", "-o", "answer", "-w", "%{http_code}"]
    ended = subprocess.run([*command, *arguments, url], cwd=directory, capture_output=True, text=True, check=True)
    # An interim answer, 100 Continue, has headers before the final one's.
    lines = (directory / "headers").read_text().strip().split("\n\n")[-1].splitlines()[1:]
    headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
    return int(ended.stdout), headers, (directory / "answer").read_bytes()


def output(body: bytes) -> list[float]:
    return json.loads(body)["outputs"][0]["data"]


@pytest.fixture
def url(client_host: HostProcess) -> str:
    return f"{client_host.url}/v2/models/versions/infer"


@pytest.mark.parametrize("header", [(), ("-H", "Transfer-Encoding: chunked"), ("-H", "Content-Type:")])
def test_json_whole_in_chunks_and_of_no_type(url: str, tmp_path: Path, header: tuple[str, ...]) -> None:
    status, headers, body = curl(
        tmp_path, url, *header, "--data-binary", "@body", body=json.dumps(REQUEST, indent=1).encode()
    )
    assert (status, headers["content-type"], output(body)) == (200, "application/json", (VALUES + 2).tolist())


def test_a_tensor_beside_its_json(url: str, tmp_path: Path) -> None:
    described = {"name": "x", "datatype": "FP32", "shape": [6], "parameters": {"binary_data_size": 24}}
    text = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    lengths = ("-H", f"Inference-Header-Content-Length: {len(text)}", "-H", "Content-Type: application/octet-stream")
    status, headers, body = curl(tmp_path, url, *lengths, "--data-binary", "@body", body=text + VALUES.tobytes())
    assert (status, headers["content-type"]) == (200, "application/octet-stream")
    text_bytes = int(headers["inference-header-content-length"])
    assert json.loads(body[:text_bytes])["outputs"][0]["parameters"] == {"binary_data_size": 24}
    assert body[text_bytes:] == (VALUES + 2).tobytes()


def test_a_tensor_and_nothing_else(url: str, tmp_path: Path) -> None:
    raw = ("-H", "Inference-Header-Content-Length: 0", "--data-binary", "@body")
    status, headers, body = curl(tmp_path, url, *raw, body=VALUES.tobytes())
    assert status == 200, body
    assert body[int(headers["inference-header-content-length"]) :] == (VALUES + 2).tobytes()


def test_a_large_body_after_the_server_has_agreed_to_it(url: str, tmp_path: Path) -> None:
    count = 400_000
    described = {"name": "x", "datatype": "FP32", "shape": [count], "parameters": {"binary_data_size": 4 * count}}
    text = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    arguments = ("-H", f"Inference-Header-Content-Length: {len(text)}", "-H", "Expect: 100-continue")
    values = np.arange(count, dtype="<f4")
    status, _, body = curl(tmp_path, url, *arguments, "--data-binary", "@body", body=text + values.tobytes())
    assert status == 200
    assert body.endswith((values + 2).tobytes())


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
def test_compressed_bodies(url: str, tmp_path: Path, coding: str, compress) -> None:
    arguments = ("-H", f"Content-Encoding: {coding}", "--data-binary", "@body")
    status, _, body = curl(tmp_path, url, *arguments, body=compress(json.dumps(REQUEST).encode()))
    assert (status, output(body)) == (200, (VALUES + 2).tolist())


@pytest.mark.parametrize(("coding", "decompress"), [("gzip", gzip.decompress), ("deflate", zlib.decompress)])
def test_compressed_answers_where_they_are_asked_for(url: str, tmp_path: Path, coding: str, decompress) -> None:
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [5000], "data": [1] * 5000}]}
    body = json.dumps(request).encode()
    asked = ("-H", f"Accept-Encoding: {coding}", "--data-binary", "@body")
    status, headers, answer = curl(tmp_path, url, *asked, body=body)
    assert (status, headers["content-encoding"]) == (200, coding)
    assert len(answer) == int(headers["content-length"]) < 5000
    assert output(decompress(answer)) == [3.0] * 5000
    refused = ("-H", f"Accept-Encoding: {coding};q=0", "--data-binary", "@body")
    status, headers, answer = curl(tmp_path, url, *refused, body=body)
    assert (status, headers.get("content-encoding"), output(answer)) == (200, None, [3.0] * 5000)


def test_a_compressed_answer_with_tensors_beside_its_json(url: str, tmp_path: Path) -> None:
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [5000], "data": [1] * 5000}]}
    body = json.dumps(request | {"parameters": {"binary_data_output": True}}).encode()
    asked = ("-H", "Accept-Encoding: gzip", "--data-binary", "@body")
    status, headers, answer = curl(tmp_path, url, *asked, body=body)
    assert (status, headers["content-encoding"]) == (200, "gzip")
    plain = gzip.decompress(answer)  # of which the JSON's length is told, not of what was sent
    assert plain[int(headers["inference-header-content-length"]) :] == np.full(5000, 3, "<f4").tobytes()


def test_errors_are_json_with_our_text(url: str, tmp_path: Path) -> None:
    status, headers, body = curl(tmp_path, url, "--data-binary", "@body", body=b"{")
    assert (status, headers["content-type"]) == (400, "application/json")
    assert json.loads(body)["error"]
    status, _, body = curl(tmp_path, url.replace("versions", "version"), "--data-binary", "@body", body=b"{}")
    assert (status, json.loads(body)["code"]) == (404, "model_not_found")
