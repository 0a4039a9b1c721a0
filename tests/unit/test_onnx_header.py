"""The header reader agrees with the onnx package, sees what grows at load, and survives damage."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, helper
from sizes import FULL

from modelhost.repository import OnnxFormatError, OnnxSummary, read_summary
from modelhost.repository.wire import WireReader
from modelhost.tensors import TensorSpec

ONNX_DATA = Path(onnx.__file__).parent / "backend/test/data"
LIGHT = sorted((ONNX_DATA / "light").glob("*.onnx"))
SIMPLE = sorted((ONNX_DATA / "simple").glob("*/model.onnx"))

V2_NAMES = {
    "FLOAT": "FP32",
    "DOUBLE": "FP64",
    "FLOAT16": "FP16",
    "BFLOAT16": "BF16",
    "STRING": "BYTES",
}


# --- models and what the onnx package says about them ---------------------------------------------


def value(name: str, kind: int = TensorProto.FLOAT, shape: object = ("n", 3)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)  # type: ignore[arg-type]


def weight(name: str, array: np.ndarray) -> TensorProto:
    return onnx.numpy_helper.from_array(array, name)


def model_of(
    nodes: list[NodeProto],
    initializers: list[TensorProto] | None = None,
    *,
    inputs: list[onnx.ValueInfoProto] | None = None,
    outputs: list[onnx.ValueInfoProto] | None = None,
    functions: list[onnx.FunctionProto] | None = None,
) -> ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x")] if inputs is None else inputs,
        [value("y")] if outputs is None else outputs,
        initializer=initializers or [],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=8, producer_name="tests", functions=functions or []
    )


def relu() -> NodeProto:
    return helper.make_node("Relu", ["x"], ["y"])


def summary_of(model: ModelProto, folder: Path) -> OnnxSummary:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return read_summary(path)


def expected_specs(values: object, skip: set[str], *, structured: bool = False) -> tuple[TensorSpec, ...]:
    specs = []
    for info in values:  # type: ignore[attr-defined]
        if structured and info.type.WhichOneof("value") in ("sequence_type", "map_type", "optional_type"):
            specs.append(TensorSpec(info.name, "BYTES", (-1,), ("",), is_structured=True))
        if info.name in skip or not info.type.HasField("tensor_type"):
            continue
        tensor = info.type.tensor_type
        name = TensorProto.DataType.Name(tensor.elem_type)
        shape = names = None
        if tensor.HasField("shape"):
            shape = tuple(d.dim_value if d.HasField("dim_value") else -1 for d in tensor.shape.dim)
            names = tuple(d.dim_param for d in tensor.shape.dim)
        specs.append(TensorSpec(info.name, V2_NAMES.get(name, name), shape, names or ()))
    return tuple(specs)


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for sub in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from nodes_of(sub)


def stored_bytes(tensor: TensorProto) -> int:
    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    itemsize: int = helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims) * itemsize)


def expected_weights(graph: GraphProto) -> tuple[int, int]:
    """Returns (inline, generated) bytes of a model without subgraphs' initialisers."""
    inline = sum(map(stored_bytes, graph.initializer))
    generated = 0
    shapes = {t.name: onnx.numpy_helper.to_array(t) for t in graph.initializer}
    for node in nodes_of(graph):
        kind = TensorProto.FLOAT
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                inline += stored_bytes(attribute.t)
                kind = attribute.t.data_type
                if node.op_type == "Constant":
                    shapes[node.output[0]] = onnx.numpy_helper.to_array(attribute.t)
        if node.op_type == "ConstantOfShape" and node.input[0] in shapes:
            itemsize = helper.tensor_dtype_to_np_dtype(kind).itemsize
            generated += math.prod(shapes[node.input[0]].tolist()) * itemsize
    return inline, generated


@pytest.mark.parametrize("path", LIGHT + SIMPLE, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_summary_agrees_with_the_onnx_package(path: Path) -> None:
    model = onnx.load(path)
    graph = model.graph
    given_values = {tensor.name for tensor in graph.initializer}

    summary = read_summary(path)

    assert expected_specs(graph.input, given_values) == summary.inputs
    assert expected_specs(graph.output, set(), structured=True) == summary.outputs
    assert {v.name for v in graph.input if not v.type.HasField("tensor_type")} == set(summary.non_tensor_inputs)
    assert summary.opaque_outputs == ()
    assert tuple((opset.domain, opset.version) for opset in model.opset_import) == summary.opsets
    assert (model.ir_version, model.producer_name) == (summary.ir_version, summary.producer)
    assert sum(1 for _ in nodes_of(graph)) == summary.node_count
    inline, generated = expected_weights(graph)
    assert inline == summary.inline_weight_bytes
    # Besides ConstantOfShape these models fold reshapes of weights and arithmetic on small constants.
    assert generated <= summary.generated_weight_bytes <= generated * 1.2 + 4096
    assert path.stat().st_size == summary.file_bytes


def test_the_onnx_package_still_ships_the_models_that_this_module_compares_with() -> None:
    assert len(LIGHT) >= 9
    assert len(SIMPLE) >= 10


def test_a_small_file_that_grows_at_load_is_seen_to_grow() -> None:
    summary = read_summary(ONNX_DATA / "light/light_vgg19.onnx")

    assert summary.file_bytes < 10_000
    assert 143_667_240 * 4 - summary.generated_weight_bytes < 10_000  # VGG-19's parameters
    assert summary.weight_bytes > 500 << 20


# --- inputs and outputs ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "sizes", "names"),
    [
        (None, None, ()),
        ((), (), ()),
        ((2, 0), (2, 0), ("", "")),
        (("batch", None, 3), (-1, -1, 3), ("batch", "", "")),
    ],
)
def test_shapes_are_told_as_far_as_the_file_knows_them(
    tmp_path: Path, shape: object, sizes: object, names: object
) -> None:
    summary = summary_of(model_of([relu()], inputs=[value("x", shape=shape)]), tmp_path)

    assert (TensorSpec("x", "FP32", sizes, names),) == summary.inputs  # type: ignore[arg-type]


def test_every_element_type_of_onnx_has_a_name_and_a_size(tmp_path: Path) -> None:
    kinds = [kind for kind in TensorProto.DataType.values() if kind != TensorProto.UNDEFINED]
    for kind in kinds:
        tensor = TensorProto(name="w", data_type=kind, dims=[3])
        model = model_of([relu()], [tensor], inputs=[value("x", kind)])

        summary = summary_of(model, tmp_path)

        name = TensorProto.DataType.Name(kind)
        assert V2_NAMES.get(name, name) == summary.inputs[0].datatype
        assert summary.inline_weight_bytes > 0 or kind == TensorProto.STRING


def test_initialisers_that_are_also_inputs_are_no_inputs(tmp_path: Path) -> None:
    model = model_of([relu()], [weight("w", np.zeros(4, "f4"))], inputs=[value("w", shape=[4]), value("x")])

    assert [spec.name for spec in summary_of(model, tmp_path).inputs] == ["x"]


def test_inputs_that_are_no_tensors_are_only_named_and_such_outputs_are_texts(tmp_path: Path) -> None:
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, None)
    optional_type = helper.make_optional_type_proto(helper.make_tensor_type_proto(TensorProto.FLOAT, [1]))
    map_type = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    sparse_type = helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [3])
    model = model_of(
        [relu()],
        inputs=[value("x"), sequence, helper.make_value_info("o", optional_type)],
        outputs=[
            helper.make_value_info("m", map_type),
            value("y"),
            helper.make_value_info("p", sparse_type),
            sequence,
            helper.make_value_info("o", optional_type),
        ],
    )

    summary = summary_of(model, tmp_path)

    assert [spec.name for spec in summary.inputs] == ["x"]
    assert summary.non_tensor_inputs == ("s", "o")
    assert [(spec.name, spec.is_structured) for spec in summary.outputs] == [
        ("m", True),
        ("y", False),
        ("s", True),
        ("o", True),
    ]
    assert summary.outputs[0] == TensorSpec("m", "BYTES", (-1,), ("",), is_structured=True)
    assert summary.opaque_outputs == ("p",)


def test_an_output_without_a_type_is_undefined(tmp_path: Path) -> None:
    model = model_of([relu()], outputs=[onnx.ValueInfoProto(name="y")])

    assert (TensorSpec("y", "UNDEFINED", None),) == summary_of(model, tmp_path).outputs


# --- weights --------------------------------------------------------------------------------------


def test_weights_are_counted_wherever_they_are(tmp_path: Path) -> None:
    def branch(name: str, size: int) -> GraphProto:
        inner = weight(f"w_{name}", np.zeros(size, "f4"))
        node = helper.make_node("Identity", [inner.name], [name])
        return helper.make_graph([node], name, [], [value(name)], initializer=[inner])

    function = helper.make_function(
        "local",
        "f",
        ["a"],
        ["b"],
        [
            helper.make_node("Constant", [], ["c"], value=weight("c", np.zeros(1000, "f8"))),
            helper.make_node("Add", ["a", "c"], ["b"]),
        ],
        [helper.make_opsetid("", 17)],
    )
    nodes = [
        helper.make_node("If", ["x"], ["i"], then_branch=branch("then", 10), else_branch=branch("else", 100)),
        helper.make_node("Constant", [], ["k"], value=weight("k", np.zeros(3, "f2"))),
        helper.make_node("f", ["k"], ["y"], domain="local"),
    ]
    model = model_of(nodes, [weight("w", np.zeros((2, 5), "i8"))], functions=[function])

    summary = summary_of(model, tmp_path)

    assert summary.inline_weight_bytes == 10 * 4 + 100 * 4 + 3 * 2 + 10 * 8 + 1000 * 8
    assert summary.node_count == 3 + 2 + 2


@pytest.mark.parametrize(
    ("kind", "size_bytes"),
    [
        (TensorProto.INT4, 3),
        (TensorProto.UINT2, 2),
        (TensorProto.FLOAT6E2M3, 4),
        (TensorProto.FLOAT8E5M2, 5),
        (TensorProto.BFLOAT16, 10),
        (TensorProto.COMPLEX128, 80),
    ],
)
def test_five_elements_take_their_packed_size(tmp_path: Path, kind: int, size_bytes: int) -> None:
    tensor = TensorProto(name="w", data_type=kind, dims=[5], raw_data=bytes(size_bytes))

    assert size_bytes == summary_of(model_of([relu()], [tensor]), tmp_path).inline_weight_bytes


def test_text_is_counted_as_stored(tmp_path: Path) -> None:
    tensor = TensorProto(name="w", data_type=8, dims=[2], string_data=[b"setosa", b"virginica"])

    assert summary_of(model_of([relu()], [tensor]), tmp_path).inline_weight_bytes == 15


def test_trees_are_counted_as_stored_though_they_are_lists_of_numbers(tmp_path: Path) -> None:
    tree = helper.make_node(
        "TreeEnsembleRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        nodes_values=[0.5] * 10_000,
        nodes_truenodeids=list(range(10_000)),
    )
    model = model_of([tree])

    summary = summary_of(model, tmp_path)

    assert 70_000 < summary.inline_weight_bytes < summary.file_bytes


def test_lists_of_other_operators_are_no_weights(tmp_path: Path) -> None:
    node = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2])

    assert summary_of(model_of([node]), tmp_path).weight_bytes == 0


def test_a_sparse_weight_counts_as_stored_and_as_the_dense_one_it_becomes(tmp_path: Path) -> None:
    sparse = helper.make_sparse_tensor(weight("w", np.ones(2, "f4")), weight("", np.array([0, 7], "i8")), [1000, 1000])
    model = model_of([relu()], inputs=[value("x"), value("w", shape=[1000, 1000])])
    model.graph.sparse_initializer.append(sparse)

    summary = summary_of(model, tmp_path)

    assert summary.inline_weight_bytes == 2 * 4 + 2 * 8
    assert summary.generated_weight_bytes == 4_000_000
    assert [spec.name for spec in summary.inputs] == ["x"]


def shape_sources() -> dict[str, tuple[list[NodeProto], list[TensorProto]]]:
    """Returns the ways in which a file can hold the constant shape [100, 50]."""
    shape = [100, 50]
    typed = helper.make_tensor("s", TensorProto.INT64, [2], shape)
    raw = weight("s", np.array(shape, "i8"))

    def constant(**attributes: object) -> list[NodeProto]:
        return [helper.make_node("Constant", [], ["s"], **attributes)]  # type: ignore[arg-type]

    return {
        "initialiser with raw data": ([], [raw]),
        "initialiser with typed data": ([], [typed]),
        "constant tensor": (constant(value=raw), []),
        "constant numbers": (constant(value_ints=shape), []),
    }


@pytest.mark.parametrize("source", shape_sources())
def test_a_constant_shape_is_found_in_every_form(tmp_path: Path, source: str) -> None:
    nodes, initializers = shape_sources()[source]
    fill = helper.make_node("ConstantOfShape", ["s"], ["y"], value=weight("v", np.zeros(1, "f8")))

    summary = summary_of(model_of([*nodes, fill], initializers), tmp_path)

    assert summary.generated_weight_bytes == 100 * 50 * 8


def test_a_shape_from_an_outer_graph_is_found_and_one_from_a_function_call_is_not(
    tmp_path: Path,
) -> None:
    fill = helper.make_node("ConstantOfShape", ["s"], ["z"])
    branch = helper.make_graph([fill], "b", [], [value("z")])
    function = helper.make_function("local", "f", ["q"], ["z"], [fill], [helper.make_opsetid("", 17)])
    model = model_of(
        [helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)],
        [weight("s", np.array([1000], "i8"))],
        functions=[function],
    )

    assert summary_of(model, tmp_path).generated_weight_bytes == 2 * 1000 * 4


def test_a_shape_that_is_fed_or_negative_generates_nothing(tmp_path: Path) -> None:
    nodes = [helper.make_node("ConstantOfShape", [name], [f"y_{name}"]) for name in ("x", "s")]
    model = model_of(nodes, [weight("s", np.array([-1, 5], "i8"))])

    assert summary_of(model, tmp_path).generated_weight_bytes == 0


# --- external data --------------------------------------------------------------------------------


def external_model(**entries: str) -> ModelProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[10])
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        tensor.external_data.add(key=key, value=text)
    return model_of([relu()], [tensor])


def test_external_weights_are_counted_apart(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/w.bin").write_bytes(bytes(140))

    summary = summary_of(external_model(location="data/w.bin", offset="100"), tmp_path)

    assert (summary.inline_weight_bytes, summary.external_weight_bytes) == (0, 40)
    assert summary.external_files == ("data/w.bin",)


def test_external_data_written_by_the_onnx_package_are_understood(tmp_path: Path) -> None:
    arrays = [np.zeros(2000, "f4"), np.zeros((300, 10), "f8")]
    model = model_of([relu()], [weight(f"w{i}", array) for i, array in enumerate(arrays)])
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin")

    summary = read_summary(tmp_path / "model.onnx")

    assert summary.external_weight_bytes == 2000 * 4 + 3000 * 8
    assert summary.external_files == ("w.bin",)


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "gone.bin"}, "'gone.bin' is missing"),
        ({"location": "w.bin/deeper"}, "is missing"),
        ({"location": "w.bin", "offset": "60"}, "has 99 bytes, tensor 'w' wants bytes 60 to 100"),
        ({"location": "w.bin", "length": "100"}, "wants bytes 0 to 100"),
        ({"location": "w.bin", "length": "39"}, "takes 40 bytes, its external data are 39"),
        ({"location": "w.bin", "offset": "-1"}, "no number"),
        ({"location": "w.bin", "offset": "9" * 5000}, "no number"),
        ({"location": "folder"}, "not a regular file"),
        ({"location": "../w.bin"}, "not a file in the model's folder"),
        ({"location": "folder/../../w.bin"}, "not a file in the model's folder"),
        ({"location": "..\\w.bin"}, "not a file in the model's folder"),
        ({"location": "/etc/passwd"}, "not a file in the model's folder"),
        ({"location": "C:\\w.bin"}, "not a file in the model's folder"),
        ({"location": "w\0.bin"}, "not a file in the model's folder"),
        ({}, "not a file in the model's folder"),
    ],
)
def test_external_data_that_cannot_be_read_are_an_error(tmp_path: Path, entries: dict[str, str], reason: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(99))
    (tmp_path / "m/folder").mkdir(parents=True)
    (tmp_path / "m/w.bin").write_bytes(bytes(99))

    with pytest.raises(OnnxFormatError) as caught:
        summary_of(external_model(**entries), tmp_path / "m")

    assert reason in str(caught.value)


@pytest.mark.parametrize("link", ["m/w.bin", "m/data"])
@pytest.mark.parametrize("target", ["secret", "m-not-this", "m/data/../../secret"])
def test_links_do_not_lead_external_data_out_of_the_models_folder(tmp_path: Path, link: str, target: str) -> None:
    (tmp_path / "m").mkdir()
    for folder in ("secret", "m-not-this"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "w.bin").write_bytes(bytes(99))
    location = "w.bin" if link == "m/w.bin" else "data/w.bin"
    place = tmp_path / target.replace("m/data/../../", "")
    (tmp_path / link).symlink_to(place / "w.bin" if link == "m/w.bin" else place)

    with pytest.raises(OnnxFormatError, match=f"'{location}' is a link to a file outside the model's folder"):
        summary_of(external_model(location=location), tmp_path / "m")


def test_links_within_a_models_folder_and_to_where_the_model_is_linked_from_are_followed(tmp_path: Path) -> None:
    onnx_model = external_model(location="w.bin")
    # As Kubernetes mounts a ConfigMap: names lead through ..data to a folder of the moment.
    moment = tmp_path / "map/..2026_11_25"
    moment.mkdir(parents=True)
    summary_file = moment / "model.onnx"
    summary_file.write_bytes(onnx_model.SerializeToString())
    (moment / "w.bin").write_bytes(bytes(40))
    (tmp_path / "map/..data").symlink_to(moment.name)
    for name in ("model.onnx", "w.bin"):
        (tmp_path / "map" / name).symlink_to(f"..data/{name}")
    assert read_summary(tmp_path / "map/model.onnx").external_weight_bytes == 40
    # As stores do that keep each content once.
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for name, blob in (("model.onnx", "aa"), ("w.bin", "bb")):
        (tmp_path / "blobs" / blob).write_bytes((moment / name).read_bytes())
        (tmp_path / "snapshot" / name).symlink_to(f"../blobs/{blob}")
    assert read_summary(tmp_path / "snapshot/model.onnx").external_weight_bytes == 40
    # The folder itself may be a link.
    (tmp_path / "linked").symlink_to(tmp_path / "map")
    assert read_summary(tmp_path / "linked/model.onnx").external_weight_bytes == 40


def test_external_data_with_two_places_are_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(40))
    model = external_model(location="w.bin")
    model.graph.initializer[0].external_data.add(key="location", value="../w.bin")
    with pytest.raises(OnnxFormatError, match="two values for 'location'"):
        summary_of(model, tmp_path)


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.example/spec/v1\noid sha256:0", "Git LFS pointer"),
        (b"<!doctype html><title>Not found</title>", "not an ONNX file"),
        (b"PK\x03\x04 an archive", "not an ONNX file"),
        (bytes(100), "not an ONNX file"),
        (b"\x08\x08", "no graph"),
        (b"\x08" + b"\xff" * 20, "over ten bytes"),
    ],
)
def test_what_is_no_model_is_called_so(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(content)

    with pytest.raises(OnnxFormatError, match=reason):
        read_summary(path)


def test_what_is_no_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OnnxFormatError, match="not a regular file"):
        read_summary(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_summary(tmp_path / "gone.onnx")


def test_a_truncated_file_says_where_it_ends(tmp_path: Path) -> None:
    data = model_of([relu()], [weight("w", np.zeros(1000, "f4"))]).SerializeToString()
    path = tmp_path / "model.onnx"
    path.write_bytes(data[:2000])

    with pytest.raises(OnnxFormatError, match="truncated at byte 2000"):
        read_summary(path)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(8)), "holds 8 bytes"),
        (TensorProto(name="w", data_type=1, dims=[-1]), "impossible shape"),
        (TensorProto(name="w", data_type=99, dims=[1]), "unknown element type 99"),
        (TensorProto(name="w", data_type=1, dims=[1 << 40, 1 << 40]), "fits no memory"),
        (TensorProto(name="w", data_type=1, dims=[1] * 65), "more than 64 dimensions"),
        (TensorProto(name="w" * 100_000, data_type=1, dims=[1]), "a name of 100000 bytes"),
    ],
)
def test_an_impossible_tensor_is_an_error(tmp_path: Path, tensor: TensorProto, reason: str) -> None:
    with pytest.raises(OnnxFormatError, match=reason):
        summary_of(model_of([relu()], [tensor]), tmp_path)


def nested(levels: int) -> bytes:
    """Returns a model of `levels` graphs within each other, deeper than protobuf writes them."""

    def length(tag: int, content: bytes) -> bytes:
        size, head = len(content), bytearray()
        while size >= 0x80:
            head.append(size & 0x7F | 0x80)
            size >>= 7
        return bytes([tag, *head, size]) + content

    graph = b""
    for _ in range(levels - 1):
        graph = length(0x0A, length(0x2A, length(0x32, graph)))  # node, attribute, its graph
    return b"\x08\x08" + length(0x3A, graph)


@pytest.mark.no_leaks(iterations=40)
def test_graphs_within_graphs_are_read_as_deep_as_protobuf_goes(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(nested(34))

    assert read_summary(path).node_count == 33


@pytest.mark.parametrize("levels", [pytest.param(35, marks=pytest.mark.no_leaks(iterations=40)), 5000])
def test_graphs_nested_deeper_are_an_error_and_not_a_recursion(tmp_path: Path, levels: int) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(nested(levels))

    with pytest.raises(OnnxFormatError, match="too deep"):
        read_summary(path)


def rich_model() -> bytes:
    """Returns a model with something of everything that the reader looks at."""
    fill = helper.make_node("ConstantOfShape", ["s"], ["z"], value=weight("v", np.zeros(1, "f4")))
    branch = helper.make_graph([fill], "b", [], [value("z")])
    model = model_of(
        [
            helper.make_node("If", ["x"], ["i"], then_branch=branch, else_branch=branch),
            helper.make_node("Constant", [], ["k"], value_ints=[3, 4]),
            helper.make_node("ConstantOfShape", ["k"], ["y"]),
        ],
        [
            weight("s", np.array([7, 9], "i8")),
            TensorProto(name="t", data_type=8, dims=[1], string_data=[b"text"]),
            weight("w", np.ones(50, "f4")),
        ],
        inputs=[value("x"), helper.make_tensor_sequence_value_info("q", TensorProto.FLOAT, [1])],
    )
    sparse = helper.make_sparse_tensor(weight("p", np.ones(2, "f4")), weight("", np.array([0, 7], "i8")), [10])
    model.graph.sparse_initializer.append(sparse)
    return bytes(model.SerializeToString())


RICH = rich_model()
bounded = settings(
    max_examples=300 if FULL else 100,
    deadline=None,
    derandomize=True,  # the same run everywhere; the seeds are no secret worth chasing in CI
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def survives(path: Path, content: bytes) -> None:
    """Passes where the reader answers, or refuses in the way it promised."""
    path.write_bytes(content)
    try:
        summary = read_summary(path)
    except OnnxFormatError as error:
        assert str(error)
    else:
        assert len(content) == summary.file_bytes
        assert summary.weight_bytes >= 0


def test_the_model_that_is_damaged_below_is_read_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(RICH)

    summary = read_summary(path)

    assert summary.generated_weight_bytes == 2 * 7 * 9 * 4 + 3 * 4 * 4 + 10 * 4


def test_a_model_cut_anywhere_is_read_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for size in range(len(RICH)):
        survives(path, RICH[:size])


@bounded
@given(content=st.binary(max_size=500))
def test_random_bytes_are_refused_politely(tmp_path: Path, content: bytes) -> None:
    survives(tmp_path / "model.onnx", content)
    survives(tmp_path / "model.onnx", b"\x08\x08\x3a" + content)


@bounded
@given(flips=st.lists(st.integers(0, len(RICH) * 8 - 1), min_size=1, max_size=8))
def test_flipped_bits_are_read_or_refused(tmp_path: Path, flips: list[int]) -> None:
    content = bytearray(RICH)
    for flip in flips:
        content[flip // 8] ^= 1 << flip % 8
    survives(tmp_path / "model.onnx", bytes(content))


@bounded
@given(at=st.integers(0, len(RICH)), put_in=st.binary(max_size=30), leave_out=st.integers(0, 30))
def test_replaced_bytes_are_read_or_refused(tmp_path: Path, at: int, put_in: bytes, leave_out: int) -> None:
    survives(tmp_path / "model.onnx", RICH[:at] + put_in + RICH[at + leave_out :])


# --- economy --------------------------------------------------------------------------------------


class CountingFile:
    """Counts the bytes that a reader takes from an open file."""

    def __init__(self, file: object) -> None:
        self.file, self.taken = file, 0

    def seek(self, position: int) -> int:
        return self.file.seek(position)  # type: ignore[attr-defined, no-any-return]

    def tell(self) -> int:
        return self.file.tell()  # type: ignore[attr-defined, no-any-return]

    def read(self, count: int) -> bytes:
        data: bytes = self.file.read(count)  # type: ignore[attr-defined]
        self.taken += len(data)
        return data


def test_weights_are_stepped_over_and_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    data = model_of([relu()], [weight(f"w{i}", np.zeros(1 << 20, "u1")) for i in range(4)])
    path.write_bytes(data.SerializeToString())
    size = path.stat().st_size
    with open(path, "rb", buffering=0) as file:
        counting = CountingFile(file)
        wire = WireReader(counting, size)  # type: ignore[arg-type]

        (graph,) = [(start, end) for tag, start, end in wire.fields(0, size) if tag == 0x3A]
        weights = [(start, end) for tag, start, end in wire.fields(*graph) if tag == 0x2A]

    assert len(weights) == 4
    assert size > 4 << 20
    assert counting.taken < 200_000


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(RICH)
    with open(path, "rb", buffering=0) as file:
        wire = WireReader(file, len(RICH) + 1000)
        with pytest.raises(OnnxFormatError, match="truncated at byte"):
            list(wire.fields(0, len(RICH) + 1000))


def test_five_thousand_nodes_are_counted(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", [f"v{i}", "w"], [f"v{i + 1}"], name=f"conv_{i}", pads=[1, 1, 1, 1])
        for i in range(5000)
    ]

    assert summary_of(model_of(nodes), tmp_path).node_count == 5000


def test_the_reader_does_without_the_onnx_package() -> None:
    program = "import sys, modelhost.repository; sys.exit('onnx' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == 0
