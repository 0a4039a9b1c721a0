"""The face of an .onnx file: inputs, outputs, opsets, and the bytes of weights behind them.

Why not the `onnx` package: it parses a whole file, weights included, into memory and costs tens of
MB to import; this host answers "would it fit?" before it spends anything. Only names, types,
shapes and sizes are read here, weights are stepped over. Whether the operators make sense is left
to ONNX Runtime.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from modelhost.repository.element_types import FLOAT
from modelhost.repository.folding import ConstantFlow
from modelhost.repository.onnx_tensors import MAX_RANK, Tensor, TensorReader, dense_bytes
from modelhost.repository.onnx_values import read_value, value_name
from modelhost.repository.wire import (
    OnnxFormatError,
    WireReader,
    length_field,
    signed,
    varint_field,
)
from modelhost.tensors import TensorSpec

#: Graphs within graphs. protobuf stops at 100 nested messages and each graph takes three
#: (graph, node, attribute), so no file that loads is deeper.
_MAX_DEPTH: Final = 34

# ModelProto
_IR_VERSION = varint_field(1)
_PRODUCER = length_field(2)
_GRAPH = length_field(7)
_OPSET = length_field(8)
_FUNCTION = length_field(25)
# OperatorSetIdProto
_OPSET_DOMAIN, _OPSET_VERSION = length_field(1), varint_field(2)
# GraphProto
_GRAPH_NODE = length_field(1)
_INITIALIZER, _SPARSE_INITIALIZER = length_field(5), length_field(15)
_GRAPH_INPUT, _GRAPH_OUTPUT = length_field(11), length_field(12)
# FunctionProto
_FUNCTION_NODE, _FUNCTION_ATTRIBUTE = length_field(7), length_field(11)
# NodeProto
_INPUT, _OUTPUT = length_field(1), length_field(2)
_OP_TYPE, _DOMAIN = length_field(4), length_field(7)
_ATTRIBUTE = length_field(5)
# AttributeProto
_INT = varint_field(3)
_TENSOR, _TENSORS = length_field(5), length_field(10)
_SUBGRAPH, _SUBGRAPHS = length_field(6), length_field(11)
_SPARSE_TENSOR, _SPARSE_TENSORS = length_field(22), length_field(23)
_INTS, _INTS_PACKED = varint_field(8), length_field(8)
_FLOATS, _FLOATS_PACKED = 7 << 3 | 5, length_field(7)
_STRINGS = length_field(9)
_LISTS = frozenset({_INTS, _INTS_PACKED, _FLOATS, _FLOATS_PACKED, _STRINGS})


@dataclass(frozen=True, slots=True)
class OnnxSummary:
    """What an .onnx file says about itself.

    `inputs` leaves out those that the file has a value for. Inputs that are no tensors are only named, in
    `non_tensor_inputs`; so are outputs that are neither tensors nor sequences, maps or optionals, in
    `opaque_outputs`. An output whose type the file leaves open has the datatype `UNDEFINED`.

    All nodes count, those of subgraphs and local functions too (a function once, however often it
    is called). `inline_weight_bytes` are in the file; `external_weight_bytes` in `external_files`,
    which are relative to its folder; `generated_weight_bytes` appear when ONNX Runtime folds
    nodes whose inputs are constants and makes sparse weights dense, and may be thousands of times
    `file_bytes`. `grows_freely` says that there is something to fold whose size is not foreseen.
    `conv_weight_bytes` and `largest_weight_bytes` (one tensor) are parts of the weights.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    non_tensor_inputs: tuple[str, ...]
    opaque_outputs: tuple[str, ...]
    ir_version: int
    opsets: tuple[tuple[str, int], ...]
    producer: str
    node_count: int
    inline_weight_bytes: int
    external_weight_bytes: int
    generated_weight_bytes: int
    external_files: tuple[str, ...]
    file_bytes: int
    grows_freely: bool = False
    conv_weight_bytes: int = 0
    largest_weight_bytes: int = 0

    @property
    def weight_bytes(self) -> int:
        """All weights that the loaded model has, wherever they come from."""
        return self.inline_weight_bytes + self.external_weight_bytes + self.generated_weight_bytes


def read_summary(path: Path) -> OnnxSummary:
    """Reads the face of the .onnx file at `path`; blocks on the disk.

    Raises OnnxFormatError where the file, or external data that it names, cannot be a model, and
    OSError where they cannot be read.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # before open(), which waits for ever on a pipe
        raise OnnxFormatError("not a regular file")
    with open(path, "rb", buffering=0) as file:
        size_bytes = os.fstat(file.fileno()).st_size
        head = file.read(40)
        if not head:
            raise OnnxFormatError("the file is empty")
        if head.startswith(b"version ") and b"git-lfs" in head:
            raise OnnxFormatError("a Git LFS pointer, not the model; `git lfs pull` fetches it")
        wire = WireReader(file, size_bytes)
        return _ModelReader(wire, TensorReader(wire, path), size_bytes).read()


@dataclass(slots=True)
class _Graph:
    """Positions in the file of one graph's constants, by name, and of its inputs and outputs."""

    parent: _Graph | None = None
    initializers: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    constants: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    sizes: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    """Bytes of a constant and of one element."""
    nodes: list[tuple[bytes, list[tuple[int, int]], list[tuple[int, int]]]] = field(default_factory=list)
    """Operator, and where the names of its inputs and outputs stand; the main graph's only."""
    inputs: list[tuple[int, int]] = field(default_factory=list)
    outputs: list[tuple[int, int]] = field(default_factory=list)


class _ModelReader:
    """Walks one model from top to bottom, once."""

    def __init__(self, wire: WireReader, tensors: TensorReader, size_bytes: int) -> None:
        self._wire = wire
        self._tensors = tensors
        self._size = size_bytes
        self._node_count = 0
        # ConstantOfShape nodes: graph, names of shape and output, element type. Resolved at the end, since
        # an outer graph's initialisers may stand behind the node.
        self._generators: list[tuple[_Graph, tuple[int, int], tuple[int, int], int]] = []
        self._generated: list[int] = []
        self._shapes: dict[tuple[int, int], tuple[int, ...] | None] = {}

    def read(self) -> OnnxSummary:
        ir_version: int | None = None
        producer, opsets = "", []
        graphs, functions = [], []
        try:
            for tag, value, last in self._wire.fields(0, self._size):
                if tag == _IR_VERSION:
                    ir_version = signed(value)
                elif tag == _PRODUCER:
                    producer = self._wire.read(value, last).decode(errors="replace")
                elif tag == _OPSET:
                    opsets.append(self._opset(value, last))
                elif tag == _GRAPH:
                    graphs.append((value, last))
                elif tag == _FUNCTION:
                    functions.append((value, last))
        except OnnxFormatError as error:
            # Every writer puts the version first; without it this was never a model.
            if ir_version is None:
                raise OnnxFormatError(f"not an ONNX file: {error}") from None
            raise
        if ir_version is None or not graphs:
            raise OnnxFormatError(f"not an ONNX file: it has no {'version' if graphs else 'graph'}")
        root = _Graph()
        for start, end in graphs:  # protobuf merges a message that comes in parts
            self._graph(start, end, root, depth=1)
        for start, end in functions:
            self._function(start, end)
        self._resolve_generators()
        flow = self._follow_constants(root)
        # Up to IR version 3 a graph lists its initialisers as inputs too.
        fed = [at for at in root.inputs if value_name(self._wire, *at) not in root.initializers]
        inputs, opaque_inputs = self._values(fed)
        outputs, opaque_outputs = self._values(root.outputs)
        return OnnxSummary(
            inputs=tuple(spec for spec in inputs if not spec.is_structured),
            outputs=outputs,
            non_tensor_inputs=(*(spec.name for spec in inputs if spec.is_structured), *opaque_inputs),
            opaque_outputs=opaque_outputs,
            ir_version=ir_version,
            opsets=tuple(opsets),
            producer=producer,
            node_count=self._node_count,
            inline_weight_bytes=self._tensors.inline_bytes,
            external_weight_bytes=self._tensors.external_bytes,
            generated_weight_bytes=self._tensors.generated_bytes + flow.folded_bytes,
            external_files=self._tensors.external_files,
            file_bytes=self._size,
            grows_freely=flow.grows_freely,
            conv_weight_bytes=flow.conv_weight_bytes,
            largest_weight_bytes=max([self._tensors.largest_bytes, *self._generated]),
        )

    def _values(self, spans: list[tuple[int, int]]) -> tuple[tuple[TensorSpec, ...], tuple[str, ...]]:
        """Returns the specs of the values at `spans`, and the names of those that have none."""
        values = [read_value(self._wire, start, end) for start, end in spans]
        specs = tuple(value for value in values if isinstance(value, TensorSpec))
        return specs, tuple(value for value in values if isinstance(value, str))

    def _opset(self, start: int, end: int) -> tuple[str, int]:
        domain, version = "", 0
        for tag, value, last in self._wire.fields(start, end):
            if tag == _OPSET_DOMAIN:
                domain = self._wire.text(value, last)
            elif tag == _OPSET_VERSION:
                version = signed(value)
        return domain, version

    # --- graphs and nodes -----------------------------------------------------------------------

    def _graph(self, start: int, end: int, graph: _Graph, *, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise OnnxFormatError(f"too deep: more than {_MAX_DEPTH} graphs within each other")
        for tag, value, last in self._wire.fields(start, end):
            if tag == _GRAPH_NODE:
                self._node(value, last, graph, depth)
            elif tag == _INITIALIZER:
                tensor = self._tensors.read(value, last)
                graph.initializers[tensor.name] = (value, last)
                graph.sizes[tensor.name] = (tensor.size_bytes, tensor.item_bytes)
            elif tag == _SPARSE_INITIALIZER:
                graph.initializers[self._tensors.read_sparse(value, last).name] = (value, value)
            elif tag == _GRAPH_INPUT:
                graph.inputs.append((value, last))
            elif tag == _GRAPH_OUTPUT:
                graph.outputs.append((value, last))

    def _function(self, start: int, end: int) -> None:
        """Reads a local function, whose names are its own."""
        graph = _Graph()
        for tag, value, last in self._wire.fields(start, end):
            if tag == _FUNCTION_NODE:
                self._node(value, last, graph, depth=1)
            elif tag == _FUNCTION_ATTRIBUTE:
                self._attribute(value, last, graph, depth=1, lists_are_weights=False)

    def _node(self, start: int, end: int, graph: _Graph, depth: int) -> None:
        self._node_count += 1
        op_type = domain = b""
        inputs: list[tuple[int, int]] = []
        outputs: list[tuple[int, int]] = []
        attributes: list[tuple[int, int]] = []
        for tag, value, last in self._wire.fields(start, end):
            if tag == _ATTRIBUTE:
                attributes.append((value, last))
            elif tag == _OP_TYPE:
                op_type = self._wire.read(value, last)
            elif tag == _INPUT:
                inputs.append((value, last))
            elif tag == _OUTPUT:
                outputs.append((value, last))
            elif tag == _DOMAIN:
                domain = self._wire.read(value, last)
        is_standard = domain in (b"", b"ai.onnx")
        is_constant = is_standard and op_type == b"Constant"
        # Operators of classical machine learning keep trees and coefficients in lists of numbers.
        lists_are_weights = is_constant or domain == b"ai.onnx.ml"
        tensor: Tensor | None = None
        for first, last in attributes:
            tensor = self._attribute(first, last, graph, depth, lists_are_weights) or tensor
        if is_constant and attributes and outputs:
            name = self._wire.read(*outputs[0])
            graph.constants[name] = attributes[0]
            graph.sizes[name] = (tensor.size_bytes, tensor.item_bytes) if tensor is not None else (8, 8)
        elif is_standard and op_type == b"ConstantOfShape" and inputs and outputs:
            element_type = tensor.element_type if tensor is not None else FLOAT
            self._generators.append((graph, inputs[0], outputs[0], element_type))
        elif is_standard and graph.parent is None:
            graph.nodes.append((op_type, inputs, outputs))

    def _attribute(self, start: int, end: int, graph: _Graph, depth: int, lists_are_weights: bool) -> Tensor | None:
        """Reads an attribute of a node in `graph`; returns a tensor in it."""
        tensor: Tensor | None = None
        for tag, value, last in self._wire.fields(start, end):
            if tag == _TENSOR or tag == _TENSORS:
                tensor = self._tensors.read(value, last)
            elif tag == _SUBGRAPH or tag == _SUBGRAPHS:
                self._graph(value, last, _Graph(graph), depth=depth + 1)
            elif tag == _SPARSE_TENSOR or tag == _SPARSE_TENSORS:
                self._tensors.read_sparse(value, last)
            elif tag in _LISTS:
                # An attribute holds one kind of value, and a forest's may be millions long: they
                # are counted as stored, without a look at each.
                self._tensors.inline_bytes += end - start if lists_are_weights else 0
                break
        return tensor

    # --- constants that a node makes ------------------------------------------------------------

    def _resolve_generators(self) -> None:
        for graph, shape_at, output_at, element_type in self._generators:
            name = self._wire.read(*shape_at)
            shape = self._shape_named(name, graph)
            # A negative size is a run's failure, not a weight.
            if shape is not None and all(dim >= 0 for dim in shape):
                size_bytes = dense_bytes(shape, element_type, name)
                self._tensors.generated_bytes += size_bytes
                self._generated.append(size_bytes)
                graph.sizes[self._wire.read(*output_at)] = (size_bytes, 4)

    def _follow_constants(self, root: _Graph) -> ConstantFlow:
        """Follows what is folded in the main graph; functions and branches are small by comparison."""
        flow = ConstantFlow(lambda name: self._shape_named(name, root))
        for name, (size_bytes, item_bytes) in root.sizes.items():
            flow.constant(name, size_bytes, item_bytes)
        for op_type, inputs, outputs in root.nodes:
            flow.node(op_type, [self._wire.read(*at) for at in inputs], [self._wire.read(*at) for at in outputs])
        return flow

    def _shape_named(self, name: bytes, graph: _Graph | None) -> tuple[int, ...] | None:
        """Returns the constant `name` as seen from `graph`, None where it is computed or fed."""
        while graph is not None:
            for known, read in (
                (graph.initializers, self._tensors.read_integers),
                (graph.constants, self._attribute_integers),
            ):
                span = known.get(name)
                if span is not None:
                    if span not in self._shapes:  # many nodes share one shape
                        self._shapes[span] = read(*span)
                    return self._shapes[span]
            graph = graph.parent
        return None

    def _attribute_integers(self, start: int, end: int) -> tuple[int, ...] | None:
        """Returns the numbers in a Constant's `value`, `value_ints` or `value_int`."""
        numbers: list[int] = []
        for tag, value, last in self._wire.fields(start, end):
            if tag == _TENSOR:
                return self._tensors.read_integers(value, last)
            if tag == _INT or tag == _INTS:
                numbers.append(signed(value))
            elif tag == _INTS_PACKED:
                numbers += self._wire.packed_integers(value, last, limit=MAX_RANK)
            if len(numbers) > MAX_RANK:
                raise OnnxFormatError(f"a shape of more than {MAX_RANK} dimensions")
        return tuple(numbers) or None
