"""What ONNX Runtime computes at load: constants that nodes make of constants, and how large they get.

It folds every node whose inputs are all constant. Most such nodes keep the size of what they are given;
some multiply it (a Cast of half-precision weights, an Expand to any size). The former are followed here,
for the latter it is only said that there is one, so that the load can leave folding out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

#: Make wider elements of their first input: at most this many bytes each, as measured. ONNX Runtime does
#: not fold a DequantizeLinear, it fuses or packs it.
_WIDENING: Final = {b"Cast": 4, b"CastLike": 4, b"DequantizeLinear": 1}

#: May make more elements than they are given, by figures in their inputs or attributes.
_GROWING: Final = frozenset(
    (
        b"Expand Tile Range Pad OneHot EyeLike Einsum MatMul Gemm Resize Upsample Loop Scan RandomNormal "
        b"RandomUniform RandomNormalLike RandomUniformLike Gather GatherND SequenceInsert ConcatFromSequence "
        b"Add Sub Mul Div Pow Where And Or Equal Greater Less Max Min Mod Sum BitShift CenterCropPad Col2Im "
        b"ConvTranspose"
    ).split()
)

#: Growing operators on constants of so few bytes in all are bounded by their product: shape arithmetic,
#: which exporters leave behind in numbers. Not so where a *value* is a size.
_SMALL_BYTES: Final = 4096
_BY_VALUE: Final = frozenset(
    b"Expand Tile Range Pad OneHot EyeLike Resize Upsample Loop Scan RandomNormal RandomUniform".split()
)

#: No tensor is larger; keeps products of hostile sizes small.
_MOST_BYTES: Final = 1 << 62


@dataclass(slots=True)
class ConstantFlow:
    """Follows constants through the nodes of the main graph, which stand in order of computation.

    `integers` returns the values of a short integer constant by name, None where there is none.
    """

    integers: Callable[[bytes], tuple[int, ...] | None]

    folded_bytes: int = 0
    """Bytes that folding adds to the weights."""
    grows_freely: bool = False
    """Whether something would be folded whose size is not known."""
    conv_weight_bytes: int = 0
    """Weights of convolutions, which loading copies into another layout."""
    _bytes: dict[bytes, tuple[int, int]] = field(default_factory=dict)

    def constant(self, name: bytes, size_bytes: int, item_bytes: int) -> None:
        """Takes note of an initialiser or a Constant node."""
        self._bytes[name] = (size_bytes, max(1, item_bytes))

    def node(self, op_type: bytes, inputs: Sequence[bytes], outputs: Sequence[bytes]) -> None:
        """Follows one node of the standard domain without subgraphs."""
        known = [self._bytes[name] for name in inputs if name in self._bytes]
        if op_type in (b"Conv", b"FusedConv") and len(inputs) > 1 and inputs[1] in self._bytes:
            self.conv_weight_bytes += self._bytes[inputs[1]][0]
        if not known or len(known) < sum(1 for name in inputs if name):
            return
        total = sum(size for size, _ in known)
        if op_type in _WIDENING:
            size, item = known[0]
            total = size // item * _WIDENING[op_type]
            known[0] = (total, _WIDENING[op_type])
        elif op_type in _BY_VALUE:
            size_bytes = self._size_by_value(op_type, inputs, known[0])
            if size_bytes is None:
                self.grows_freely = True
                return
            total = size_bytes
        elif op_type in _GROWING and total > _SMALL_BYTES:
            self.grows_freely = True
            return
        elif op_type in _GROWING:
            total = 1
            for size, _ in known:
                total *= max(1, size)
            total = min(total, _SMALL_BYTES * _SMALL_BYTES)
        self.folded_bytes += total
        for name in outputs:
            self._bytes[name] = (total, known[0][1])

    def _size_by_value(self, op_type: bytes, inputs: Sequence[bytes], first: tuple[int, int]) -> int | None:
        """Returns an upper bound where the values that say the size can be read."""
        if op_type in (b"Expand", b"Tile") and len(inputs) > 1:
            factors = self.integers(inputs[1])
            if factors is not None:
                return min(_MOST_BYTES, first[0] * math.prod(max(1, factor) for factor in factors))
        if op_type == b"Range" and len(inputs) > 2:
            start, limit, delta = (self.integers(name) for name in inputs[:3])
            if start and limit and delta and delta[0]:
                return min(_MOST_BYTES, 8 * max(0, -((start[0] - limit[0]) // delta[0])))
        return None
