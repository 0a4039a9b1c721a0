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


def heavy(megabytes: int, *, layers: int = 8, is_noisy: bool = False) -> onnx.ModelProto:
    """`y = W·…·W·x` with so many megabytes of weights; takes tens of milliseconds to load.

    Of equal layers ONNX Runtime holds one; `is_noisy`: they differ, and a row of one number still comes out as it is.
    """
    side, rng = int((megabytes * _MB / 4 / layers) ** 0.5), np.random.default_rng(0)

    def weight(layer: int) -> onnx.TensorProto:
        values = np.full((side, side), 1 / side, np.float32)
        if is_noisy:
            noise = rng.random((side, side), np.float32) / side
            values += noise - noise.mean(axis=0)
        return numpy_helper.from_array(values, f"w{layer}")

    weights = [weight(layer) for layer in range(layers)]
    names = ["x", *(f"h{layer}" for layer in range(1, layers)), "y"]
    nodes = [helper.make_node("MatMul", [names[i], f"w{i}"], [names[i + 1]]) for i in range(layers)]
    return _model(nodes, [("x", TensorProto.FLOAT, ["n", side])], weights=weights)


def heavy_conv(megabytes: int) -> tuple[onnx.ModelProto, int]:
    """Two convolutions with so many megabytes of weights, which a session packs into the heap, on one pixel: much to
    hold and little to reckon. Returns the model and its channels; all of `y` are the mean of `x`."""
    channels = round((megabytes * _MB / 4 / 9 / 2) ** 0.5 / 16) * 16
    weights = [
        numpy_helper.from_array(np.full((channels, channels, 3, 3), 1 / channels, np.float32), f"w{layer}")
        for layer in range(2)
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["h"], pads=[1] * 4),
        helper.make_node("Conv", ["h", "w1"], ["y"], pads=[1] * 4),
    ]
    return _model(nodes, [("x", TensorProto.FLOAT, ["n", channels, 1, 1])], weights=weights), channels


def identity(element_type: int) -> onnx.ModelProto:
    """`y = x` of any one element type."""
    return _model(
        [helper.make_node("Identity", ["x"], ["y"])], [("x", element_type, ["n"])], output=("y", element_type, ["n"])
    )


def identities(element_types: Sequence[int], shape: Sequence[str | int]) -> onnx.ModelProto:
    """`y<type> = x<type>` of many element types, all of one shape."""
    return _model_of(
        [helper.make_node("Identity", [f"x{kind}"], [f"y{kind}"]) for kind in element_types],
        [helper.make_tensor_value_info(f"x{kind}", kind, list(shape)) for kind in element_types],
        [helper.make_tensor_value_info(f"y{kind}", kind, list(shape)) for kind in element_types],
    )


def cast(given: int, wanted: int) -> onnx.ModelProto:
    """`y = x` of one element type as another one."""
    return _model(
        [helper.make_node("Cast", ["x"], ["y"], to=wanted)], [("x", given, ["n"])], output=("y", wanted, ["n"])
    )


def dense_bf16(side: int) -> onnx.ModelProto:
    """`y = 2 x`, BF16 in and out, by a matrix of FP32 that is worth mapping where it is large."""
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.BFLOAT16),
    ]
    weight = numpy_helper.from_array(2 * np.eye(side, dtype=np.float32), "w")
    face = ("n", side)
    return _model(
        nodes, [("x", TensorProto.BFLOAT16, [*face])], output=("y", TensorProto.BFLOAT16, []), weights=[weight]
    )


def expand_bf16() -> onnx.ModelProto:
    """`y`, BF16, is `x` repeated `times` times, as FP32 in between."""
    nodes = [
        helper.make_node("Cast", ["x"], ["a"], to=TensorProto.FLOAT),
        helper.make_node("Expand", ["a", "times"], ["b"]),
        helper.make_node("Cast", ["b"], ["y"], to=TensorProto.BFLOAT16),
    ]
    inputs = [("x", TensorProto.BFLOAT16, [1]), ("times", TensorProto.INT64, [1])]
    return _model(nodes, inputs, output=("y", TensorProto.BFLOAT16, ["n"]))


# --- models whose outputs are no tensors --------------------------------------------------------------


def zip_map(labels: Sequence[str] | Sequence[int]) -> onnx.ModelProto:
    """A classifier's end as scikit-learn exports have it: the `label`, and `probabilities` by class."""
    is_text = isinstance(labels[0], str)
    attribute = {"classlabels_strings" if is_text else "classlabels_int64s": labels}
    kind = helper.make_map_type_proto(TensorProto.STRING if is_text else TensorProto.INT64, _tensor_type())
    return _model_of(
        [
            helper.make_node("ArgMax", ["x"], ["label"], axis=1, keepdims=0),
            helper.make_node("ZipMap", ["x"], ["probabilities"], domain="ai.onnx.ml", **attribute),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", len(labels)])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["n"]),
            helper.make_value_info("probabilities", helper.make_sequence_type_proto(kind)),
        ],
    )


def pair(element_type: int, shape: Sequence[str | int]) -> onnx.ModelProto:
    """`y` is a sequence: `x` twice."""
    return _model_of(
        [helper.make_node("SequenceConstruct", ["x", "x"], ["y"])],
        [helper.make_tensor_value_info("x", element_type, list(shape))],
        [helper.make_value_info("y", helper.make_sequence_type_proto(_tensor_type(element_type)))],
    )


def pair_of_reciprocals() -> onnx.ModelProto:
    """`y` is a sequence: `1 / x` twice, which has infinity where `x` has zero."""
    return _model_of(
        [helper.make_node("Reciprocal", ["x"], ["r"]), helper.make_node("SequenceConstruct", ["r", "r"], ["y"])],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [helper.make_value_info("y", helper.make_sequence_type_proto(_tensor_type()))],
    )


def optionals() -> onnx.ModelProto:
    """`some` is `x`, `none` nothing, `several` a sequence with `x`; all are optionals, and `empty` is a sequence."""
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, ["n"])
    sequence = helper.make_sequence_type_proto(_tensor_type())
    return _model_of(
        [
            helper.make_node("Optional", ["x"], ["some"]),
            helper.make_node("Optional", [], ["none"], type=tensor),
            helper.make_node("SequenceConstruct", ["x"], ["s"]),
            helper.make_node("Optional", ["s"], ["several"]),
            helper.make_node("SequenceEmpty", [], ["empty"], dtype=TensorProto.FLOAT),
        ],
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])],
        [
            helper.make_value_info("some", helper.make_optional_type_proto(tensor)),
            helper.make_value_info("none", helper.make_optional_type_proto(tensor)),
            helper.make_value_info("several", helper.make_optional_type_proto(sequence)),
            helper.make_value_info("empty", sequence),
        ],
    )


def map_input() -> onnx.ModelProto:
    """Takes a map, which no request can carry."""
    given = helper.make_map_type_proto(TensorProto.STRING, _tensor_type())
    return _model_of(
        [helper.make_node("DictVectorizer", ["x"], ["y"], domain="ai.onnx.ml", string_vocabulary=["a", "b"])],
        [helper.make_value_info("x", given)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 2])],
    )


def _tensor_type(element_type: int = TensorProto.FLOAT) -> onnx.TypeProto:
    return helper.make_tensor_type_proto(element_type, None)


def reciprocal() -> onnx.ModelProto:
    """`y = 1 / x`, which makes infinity out of zero."""
    return _model([helper.make_node("Reciprocal", ["x"], ["y"])], [("x", TensorProto.FLOAT, ["n"])])


def two_inputs() -> onnx.ModelProto:
    """`y = a + b`; both have the dimension `n`."""
    return _model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [("a", TensorProto.FLOAT, ["n"]), ("b", TensorProto.FLOAT, ["n"])],
    )


def triples() -> onnx.ModelProto:
    """`x` in rows of three: its run fails on any other count."""
    shape = numpy_helper.from_array(np.int64([-1, 3]), "shape")
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["y"])]
    return _model(nodes, [("x", TensorProto.FLOAT, ["n"])], output=("y", TensorProto.FLOAT, ["m", 3]), weights=[shape])


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
    return _model_of(
        nodes,
        [helper.make_tensor_value_info(*entry) for entry in inputs],
        [helper.make_tensor_value_info(output[0], output[1], shape)],
        weights,
    )


def _model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    weights: Sequence[onnx.TensorProto] = (),
) -> onnx.ModelProto:
    graph = helper.make_graph(list(nodes), "graph", list(inputs), list(outputs), list(weights))
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)
