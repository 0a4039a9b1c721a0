"""The bound for the memory that a V1 body takes, against what a fresh process really used."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from pathlib import Path

import probes
import pytest

from modelhost.api.codec.v1 import predict_cost_bytes

N = 100_000
#: The kernel counts resident pages in batches per processor (the probe stays on one).
COUNTING_ERROR_BYTES = 1 << 20

#: By how many bytes decoding the body in the file makes the process grow at its peak.
PROBE = """
from modelhost.api.codec.v1 import decode_predict
from modelhost.errors import ModelHostError
from modelhost.tensors import TensorSpec
from modelhost.testing.running import read_status

def decode(body, inputs):
    try:
        return decode_predict(body, inputs=inputs, outputs={}, max_decoded_bytes=1 << 40)
    except ModelHostError as error:
        return error

def measure(path, datatype, names):
    inputs = {name: TensorSpec(name, datatype, None) for name in names}
    # What runs for the first time is read from its file.
    decode(b'{"instances":["' + b"a" * 300_000 + b'", 1]}', inputs)
    with open(path, "rb", buffering=0) as file:
        body = file.read()
    before = read_status("VmRSS")
    result = decode(body, inputs)
    return read_status("VmHWM") - before, type(result).__name__
"""


def instances(item: bytes, count: int = N) -> bytes:
    return b'{"instances":[' + b",".join([item] * count) + b"]}"


def encoded(text: str) -> bytes:
    return b'{"b64":"' + base64.b64encode(text.encode()) + b'"}'


BODIES: dict[str, tuple[Callable[[], bytes], str, str, str]] = {
    "numbers": (lambda: instances(b"0.12345"), "FP32", "x", "PredictRequest"),
    "rows of one": (lambda: instances(b"[0.12345]"), "FP64", "x", "PredictRequest"),
    "half numbers": (lambda: instances(b"[0.5,0.25]"), "FP16", "x", "PredictRequest"),
    "objects": (lambda: instances(b'{"a":1,"b":2}'), "INT64", "a,b", "PredictRequest"),
    "objects of lists": (lambda: instances(b'{"a":[0.1],"b":[0.2]}'), "FP32", "a,b", "PredictRequest"),
    "texts": (lambda: instances(b'"some text"'), "BYTES", "x", "PredictRequest"),
    "lists of texts": (lambda: instances(b'["a","b"]'), "BYTES", "x", "PredictRequest"),
    "short texts in base64": (lambda: instances(encoded("a")), "BYTES", "x", "PredictRequest"),
    "long texts in base64": (lambda: instances(encoded("a" * 300 + "😀"), 10_000), "BYTES", "x", "PredictRequest"),
    "one text in base64": (lambda: instances(encoded("a" * 5_000_000 + "😀"), 1), "BYTES", "x", "PredictRequest"),
    "a wrong last row": (lambda: instances(b"[0.1]")[:-2] + b',["a"]]}', "FP32", "x", "InvalidTensor"),
    "a wrong last text": (lambda: instances(encoded("a"))[:-2] + b",1]}", "BYTES", "x", "InvalidTensor"),
    "objects, the last without an input": (
        lambda: instances(b'{"a":1,"b":2}')[:-2] + b',{"a":1}]}',
        "INT64",
        "a,b",
        "InvalidRequest",
    ),
}


@pytest.fixture(scope="module")
def grown() -> Iterator[Callable[..., list[str]]]:
    with probes.forking(probes.ONE_PROCESSOR + PROBE) as ask:
        yield ask


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("name", BODIES)
def test_no_body_takes_more_than_the_bound(name: str, tmp_path: Path, grown: Callable[..., list[str]]) -> None:
    make, datatype, inputs, kind = BODIES[name]
    body = make()
    (tmp_path / "body").write_bytes(body)
    used, got = grown(str(tmp_path / "body"), datatype, inputs.split(","))
    assert got == kind
    assert int(used) <= predict_cost_bytes(body) + COUNTING_ERROR_BYTES
