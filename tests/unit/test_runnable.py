"""Sessions that take or give BF16: what goes in and comes out, and how long it lives."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import ml_dtypes  # comes with onnx
import models_for_tests as build
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto

from modelhost.runtime.engine import NotRunnable, runnable
from modelhost.tensors import BF16, from_bfloat16, to_bfloat16

BF, FP = TensorProto.BFLOAT16, TensorProto.FLOAT


def session_of(model: onnx.ModelProto) -> Any:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def bf16_identity(shape: Sequence[str | int]) -> Any:
    return runnable(session_of(build.identities([BF], shape)))


def test_a_session_without_bf16_is_run_itself() -> None:
    for model in (build.identity(FP), build.zip_map(["a", "b"]), build.optionals()):
        session = session_of(model)
        assert runnable(session) is session


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (0,), (2, 0, 3)])
def test_any_shape_comes_back(shape: tuple[int, ...]) -> None:
    given = to_bfloat16(np.arange(np.prod(shape), dtype=np.float32).reshape(shape))
    (got,) = bf16_identity([f"d{axis}" for axis in range(len(shape))]).run(["y16"], {"x16": given}, None)
    assert (got.dtype, got.shape, got.tolist()) == (BF16, shape, given.tolist())


def odd() -> np.ndarray:
    """An array at an odd address."""
    memory = np.zeros(64, np.uint8)
    start = 1 - memory.ctypes.data % 2
    array = memory[start : start + 4].view(BF16)
    array[:] = to_bfloat16([1, 2])
    return array


@pytest.mark.parametrize(
    "given",
    [
        odd(),
        to_bfloat16([1, 0, 2, 0])[::2],
        np.frombuffer(b"\x80\x3f\x00\x40", BF16),
        np.array([1, 2], ml_dtypes.bfloat16),
    ],
    ids=["at an odd address", "not in a row", "read-only", "of the package that has them"],
)
def test_arrays_go_in_wherever_they_lie(given: np.ndarray) -> None:
    session = bf16_identity(["n"])
    (got,) = session.run(["y16"], {"x16": given}, None)
    assert from_bfloat16(got).tolist() == [1, 2]


def test_an_output_lives_as_long_as_its_array() -> None:
    session = bf16_identity(["n"])
    given = to_bfloat16(np.arange(1000, dtype=np.float32))
    (kept,) = session.run(["y16"], {"x16": given}, None)
    part = kept[10:20]
    wanted = kept.tolist()
    for _ in range(20):  # what was given back would be taken again
        session.run(["y16"], {"x16": to_bfloat16(np.zeros(1000))}, None)
    assert kept.tolist() == wanted
    del session, kept
    gc.collect()
    assert part.tolist() == wanted[10:20]
    assert not part.flags.writeable


def test_outputs_come_in_the_order_asked_for_and_all_where_none_is_named() -> None:
    session = runnable(session_of(build.identities([BF, FP, TensorProto.BOOL], ["n"])))
    feeds = {"x16": to_bfloat16([1]), "x1": np.array([2], np.float32), "x9": np.array([True])}
    for names in (["y1", "y16"], ["y16", "y9"], ["y9"], ["y1"]):
        got = session.run(names, feeds, None)
        assert [value.dtype for value in got] == [feeds[name.replace("y", "x")].dtype for name in names]
    assert [value.tolist() for value in session.run(None, feeds)] == [[b"\x80\x3f"], [2.0], [True]]


def test_texts_and_sequences_are_no_hindrance_where_no_output_is_bf16() -> None:
    nodes = [
        onnx.helper.make_node("Cast", ["b"], ["f"], to=FP),
        onnx.helper.make_node("SequenceConstruct", ["f"], ["s"]),
        onnx.helper.make_node("Identity", ["t"], ["u"]),
    ]
    info = onnx.helper.make_tensor_value_info
    sequence = onnx.helper.make_tensor_sequence_value_info("s", FP, None)
    text = TensorProto.STRING
    graph = onnx.helper.make_graph(
        nodes, "g", [info("b", BF, ["n"]), info("t", text, ["m"])], [sequence, info("u", text, ["m"])]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    got = runnable(session_of(model)).run(None, {"b": to_bfloat16([3]), "t": np.array(["é"], object)})
    assert [np.asarray(value).tolist() for value in got] == [[[3.0]], ["é"]]


def test_what_the_binding_cannot_carry_beside_bf16_is_named() -> None:
    with pytest.raises(NotRunnable, match=r"output 'y16' is BF16.* the input 'x8', tensor\(string\)"):
        runnable(session_of(build.identities([BF, TensorProto.STRING], ["n"])))


def test_errors_are_the_sessions_own() -> None:
    session = bf16_identity([3])
    with pytest.raises(Exception, match="Got invalid dimensions") as caught:
        session.run(["y16"], {"x16": to_bfloat16([1, 2])}, None)
    assert type(caught.value).__name__ == "InvalidArgument"
    options = ort.RunOptions()
    options.terminate = True
    with pytest.raises(Exception, match="terminate flag"):
        session.run(["y16"], {"x16": to_bfloat16([1, 2, 3])}, options)
