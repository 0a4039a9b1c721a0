"""Small ONNX models, built where a test needs one; never shipped."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_MB = 1 << 20


def save(model: onnx.ModelProto, directory: Path, name: str, version: str = "1") -> Path:
    """Writes `model` as `<directory>/<name>/<version>/model.onnx`."""
    file = directory / name / version / "model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, file)
    return file


def add_constant(constant: float) -> onnx.ModelProto:
    """`y = x + constant`, FP32 of any length: which version answered can be seen in the answer."""
    weight = numpy_helper.from_array(np.array([constant], np.float32), "c")
    return _model([helper.make_node("Add", ["x", "c"], ["y"])], [("x", TensorProto.FLOAT, ["n"])], weights=[weight])


def every_type(*, half: bool = True) -> onnx.ModelProto:
    """`same_T = T` for an input of each datatype, named after it; FP16, which JSON has not, only with `half`."""
    named = {"FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}
    integers = [f"{kind}{bits}" for kind in ("UINT", "INT") for bits in (8, 16, 32, 64)]
    types = {
        datatype.lower(): TensorProto.DataType.Value(named.get(datatype, datatype))
        for datatype in ("BOOL", *integers, *named)
        if half or datatype != "FP16"
    }
    graph = helper.make_graph(
        [helper.make_node("Identity", [name], [f"same_{name}"]) for name in types],
        "graph",
        [helper.make_tensor_value_info(name, element_type, ["n"]) for name, element_type in types.items()],
        [helper.make_tensor_value_info(f"same_{name}", element_type, ["n"]) for name, element_type in types.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def scalar() -> onnx.ModelProto:
    """`y = x` for one FP32 number without dimensions."""
    nodes = [helper.make_node("Identity", ["x"], ["y"])]
    return _model(nodes, [("x", TensorProto.FLOAT, [])], output=("y", TensorProto.FLOAT, []))


def heavy(megabytes: int, *, layers: int = 8) -> onnx.ModelProto:
    """`y = W·…·W·x` with so many megabytes of weights; takes tens of milliseconds to load."""
    side = int((megabytes * _MB / 4 / layers) ** 0.5)
    weights = [
        numpy_helper.from_array(np.full((side, side), 1 / side, np.float32), f"w{layer}") for layer in range(layers)
    ]
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    return _model(nodes, [("x", TensorProto.FLOAT, ["n", side])], weights=weights)


def identity(element_type: int) -> onnx.ModelProto:
    """`y = x` of any one element type."""
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", element_type, ["n"])], output=("y", element_type, ["n"])
    )


def reciprocal() -> onnx.ModelProto:
    """`y = 1 / x`, which makes infinity out of zero."""
    return _model([helper.make_node("Reciprocal", ["x"], ["y"])], [("x", TensorProto.FLOAT, ["n"])])


def two_inputs() -> onnx.ModelProto:
    """`y = a + b`; both have the dimension `n`."""
    return _model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [("a", TensorProto.FLOAT, ["n"]), ("b", TensorProto.FLOAT, ["n"])],
    )


def unknown_operator() -> onnx.ModelProto:
    """Has a face that can be read, and cannot be loaded: no runtime knows its operator."""
    return _model([helper.make_node("NoSuchOperator", ["x"], ["y"])], [("x", TensorProto.FLOAT, ["n"])])


def _model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, list[str | int]]],
    *,
    output: tuple[str, int, list[str | int]] = ("y", TensorProto.FLOAT, ["n"]),
    weights: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    shape = inputs[0][2] if len(inputs[0][2]) > 1 else output[2]
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(output[0], output[1], shape)],
        list(weights),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
