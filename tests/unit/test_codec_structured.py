"""Elements of sequences, maps and optionals: their JSON texts, and the bound for what those take."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import probes
import pytest

from modelhost.api.codec import OutputRequest, encode_response, json_texts, json_values
from modelhost.errors import UnrepresentableOutput
from modelhost.runtime.structured import StructuredSession, as_elements
from modelhost.tensors import TensorSpec

NUMPY = orjson.OPT_SERIALIZE_NUMPY


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ([{1: 0.5, -2: 1.0}], ['{"1":0.5,"-2":1.0}']),
        ([{"a": 1}, {}], ['{"a":1}', "{}"]),
        ([{"é": "\n"}], ['{"é":"\\n"}']),
        ({"a": 1.5}, ['{"a":1.5}']),
        (None, ["null"]),
        ([], []),
        ([None, "a"], ["null", '"a"']),
        (np.array([[1, 2]], np.int8), ["[[1,2]]"]),
        ([np.array([0.1], np.float32), np.array([0.1])], ["[0.1]", "[0.1]"]),
        ([np.array([0.1], np.float16)], ["[0.099975586]"]),
        ([np.array(0.1, np.float32), np.array(True)], ["0.1", "true"]),
        ([np.array(["a", ""], object), np.array("b", object)], ['["a",""]', '"b"']),
        ([np.empty((0, 2)), np.empty((2, 0))], ["[]", "[[],[]]"]),
        ([np.arange(4).reshape(2, 2).T], ["[[0,2],[1,3]]"]),
        ([np.array([2**64 - 1], np.uint64)], ["[18446744073709551615]"]),
    ],
)
def test_each_element_has_its_text(value: Any, texts: list[str]) -> None:
    elements = as_elements(value)
    assert elements.shape == (len(texts),)
    assert json_texts("y", elements) == texts
    assert orjson.dumps(json_values("y", elements), option=NUMPY).decode() == f"[{','.join(texts)}]"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([{"a": 1.0}, {"a": float("nan")}], "element 1 holds nan, which JSON cannot carry"),
        ([{"a": float("-inf")}], "element 0 holds -inf"),
        ([np.zeros(2), np.array([[0, np.inf]], np.float32)], "element 1 holds inf"),
        ([np.array(np.nan)], "element 0 holds nan"),
        ([np.array([np.inf], np.float16)], "element 0 holds inf"),
        ([{"a": "\ud800"}], "element 0 has no JSON form"),
        ([np.array(["a\udfff"], object)], "element 0 has no JSON form"),
        ([np.zeros(1, np.complex64)], "element 0 has no JSON form"),
    ],
)
def test_what_json_cannot_carry_is_refused_by_element(value: Any, words: str) -> None:
    with pytest.raises(UnrepresentableOutput, match=f"output 'y': {words}"):
        json_texts("y", as_elements(value))


@pytest.mark.parametrize("binary", [True, False])
def test_an_output_beside_them_that_has_no_form_is_named(binary: bool) -> None:
    outputs = [
        (OutputRequest("maps", binary), TensorSpec.structured("maps"), as_elements([{"a": 1}])),
        (OutputRequest("text", binary), TensorSpec("text", "BYTES", (-1,)), np.array(["\ud800"], object)),
    ]
    with pytest.raises(UnrepresentableOutput, match="output 'text': element 0 has no UTF-8 form"):
        encode_response(model_name="m", model_version="1", request_id="", outputs=outputs)


def test_a_session_hands_out_elements_only_for_those_outputs() -> None:
    class Session:
        def run(self, names: Any, feeds: Any, options: Any) -> list[Any]:
            return [{"seq": [1, 2], "tensor": np.zeros(2)}[name] for name in names]

    session = StructuredSession(Session(), ["seq"])
    tensor, elements = session.run(["tensor", "seq"], {}, None)
    assert tensor.dtype == np.float64
    assert (elements.dtype, elements.tolist()) == (np.dtype(object), [1, 2])


# --- the bound -------------------------------------------------------------------------------------------

#: By how many bytes making the elements and encoding them makes a process grow at its peak, and the bound.
PROBE = """
import numpy as np
from modelhost.api.codec import OutputRequest, encode_cost_bytes, encode_response
from modelhost.runtime.structured import as_elements
from modelhost.tensors import TensorSpec
from modelhost.testing.running import read_status

def encode(elements, binary):
    outputs = [(OutputRequest("y", binary), TensorSpec.structured("y"), elements)]
    cost = encode_cost_bytes(outputs)
    encode_response(model_name="m", model_version="1", request_id="", outputs=outputs)
    return cost

def measure(text, binary):
    encode(as_elements([{"a": 1.0}, np.zeros((2, 2)), np.array(["a"], object)]), binary)
    before = read_status("VmRSS")
    cost = encode(as_elements(eval(text)), binary)
    return read_status("VmHWM") - before, cost
"""

HOSTILE = {
    "maps of three": "[{'setosa': i / 7, 'versicolor': 1 / (i + 3), 'virginica': 0.1} for i in range(30_000)]",
    "maps by number": "[{j * i: i / 7 for j in range(10)} for i in range(1000, 11_000)]",
    "empty maps": "[{} for _ in range(100_000)]",
    "a large map": "[{str(i): i / 7 for i in range(200_000)}]",
    "keys of quotes": "[{'\\\"' * 1000 + str(i): 1.0} for i in range(5_000)]",
    "keys of controls": "[{'\\x1f' * 1000 + str(i): 1.0} for i in range(5_000)]",
    "wide keys": "[{'😀' * 1000 + str(i): 1.0} for i in range(5_000)]",
    "values of text": "[{i: '日本' * 10} for i in range(50_000)]",
    "an array": "[np.random.default_rng(0).standard_normal(500_000)]",
    "arrays of one": "[np.full(1, i / 7) for i in range(50_000)]",
    "lists of one": "[np.random.default_rng(0).standard_normal((200_000, 1))]",
    "lists of nothing": "[np.zeros((1000, 1000, 0), np.float32)]",
    "bytes": "[np.zeros(2_000_000, np.uint8)]",
    "texts": "[np.array(['ab%d' % i for i in range(100_000)], object)]",
    "nothing": "[None] * 200_000",
}


@pytest.fixture(scope="module")
def grown() -> Iterator[Callable[..., list[str]]]:
    with probes.forking(probes.ONE_PROCESSOR + PROBE) as ask:
        yield ask


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", HOSTILE)
def test_no_elements_take_more_than_the_bound(name: str, binary: bool, grown: Callable[..., list[str]]) -> None:
    used, bound = map(int, grown(HOSTILE[name], binary))
    assert used <= bound + (1 << 20)  # the kernel counts resident pages in batches per processor
    assert bound <= 12 * used
