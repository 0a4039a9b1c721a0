"""A saved model gets the original's inputs back, nothing else of it changes, and damage is only ever a ValueError."""

from __future__ import annotations

import contextlib

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelhost.prepare.face import with_inputs


def model(ir_version: int) -> onnx.ModelProto:
    """`y = Conv(x, w) * k`, its initialisers listed as inputs as files of IR version 3 have them."""
    weights = [
        numpy_helper.from_array(np.arange(36, dtype=np.float32).reshape(2, 2, 3, 3), "w"),
        numpy_helper.from_array(np.float32([2]), "k"),
    ]
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["h"]), helper.make_node("Mul", ["h", "k"], ["y"])],
        "graph",
        [
            helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 2, 3, 3]),
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 2, "h", "w"]),
            helper.make_tensor_value_info("k", TensorProto.FLOAT, [1]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 2, "a", "b"])],
        weights,
        doc_string="what it does",
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=ir_version)
    made.producer_name, made.model_version, made.domain = "tests", 7, "org.example"
    helper.set_model_props(made, {"labels": "a,b"})
    return made


SAVED = model(3).SerializeToString()


def test_initialisers_are_inputs_no_more_and_the_rest_stays() -> None:
    rewritten = onnx.load_from_string(with_inputs(SAVED, {"x"}))
    onnx.checker.check_model(rewritten)
    assert [value.name for value in rewritten.graph.input] == ["x"]
    assert rewritten.ir_version == 8
    expected = model(8)
    del expected.graph.input[2], expected.graph.input[0]
    assert rewritten == expected


def test_a_newer_version_stays_and_inputs_keep_their_order() -> None:
    original = model(10)
    assert onnx.load_from_string(with_inputs(original.SerializeToString(), ["k", "x", "w"])) == original


def test_fields_that_nobody_knows_are_kept() -> None:
    unknown = bytes([0xFA, 0x3F, 2, 1, 2])  # number 1023, two bytes
    assert with_inputs(SAVED + unknown, {"x"}).endswith(unknown)


@pytest.mark.parametrize(
    "garbage", [b"", b"\x08\x08", b"not a model", b"\x3a\xff\xff\xff\xff\x7f", b"\xff" * 20, b"\x0b\x0c"]
)
def test_what_is_no_model_is_a_value_error(garbage: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        with_inputs(garbage, {"x"})


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(garbage: bytes) -> None:
    with contextlib.suppress(ValueError):
        with_inputs(garbage, {"x"})


@given(st.integers(0, len(SAVED) - 1), st.integers(0, 255), st.booleans())
def test_a_damaged_or_cut_model_raises_nothing_else(at: int, byte: int, is_cut: bool) -> None:
    damaged = SAVED[:at] if is_cut else SAVED[:at] + bytes([byte]) + SAVED[at + 1 :]
    with contextlib.suppress(ValueError):
        with_inputs(damaged, {"x"})
