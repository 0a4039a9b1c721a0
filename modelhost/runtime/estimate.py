"""What a child process takes that opens a model for the first time, from the face of the file.

The only figures that are not measured: something has to be reserved for the measuring itself. Upper
bounds, by what opening held at its peak over convolutional, fully connected and small models with
onnxruntime 1.32 and the allocator's settings: the weights, and copies of some of them.
"""

from __future__ import annotations

from typing import Final

from modelhost.repository import OnnxSummary
from modelhost.runtime.base import Preparation

_PEAK_FACTOR: Final = 1.1
#: Copies while loading: of convolutions' weights in another layout, of generated weights, and of one
#: tensor at a time while it is packed for multiplication.
_CONV_FACTOR: Final = 1.4
_GENERATED_FACTOR: Final = 1.05
#: Nodes and names in memory against the same in the file.
_STRUCTURE_FACTOR: Final = 6
#: The child itself: interpreter, numpy, ONNX Runtime, and what its measured runs take.
_CHILD_BYTES: Final = 48 << 20


def preparation(summary: OnnxSummary) -> Preparation:
    """Returns what the child has to be given at least, and what is most likely enough."""
    weights = summary.weight_bytes
    structure = max(0, summary.file_bytes - summary.inline_weight_bytes) * _STRUCTURE_FACTOR
    copies = max(summary.conv_weight_bytes * _CONV_FACTOR, summary.generated_weight_bytes * _GENERATED_FACTOR)
    peak = int((weights + summary.largest_weight_bytes) * _PEAK_FACTOR + copies) + structure
    return Preparation(least_bytes=weights + _CHILD_BYTES // 2, likely_bytes=peak + _CHILD_BYTES)
