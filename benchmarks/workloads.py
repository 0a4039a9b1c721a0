"""What `python -m benchmarks throughput` asks for: a few models, each with one question and its right answer.

Generated from seeds and kept in the cache, each as a repository of its own; the batch dimension is free.
The right answer is what onnxruntime says here, of the file as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks.models import Array
from benchmarks.places import default_cache
from benchmarks.zoo import build_model

#: Another generator is other files.
_FORMAT: Final = "throughput-v1"
#: Probabilities and means of order 1, and sums of at most some thousand products of such.
_TOLERANCE: Final = 1e-3

_Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Workload:
    """One model that maps `x` to `y`, FP32 both, and what is asked of it."""

    name: str
    repository: Path
    question: Array
    answer: Array
    forms: tuple[str, ...]
    connections: tuple[int, ...]

    @property
    def file(self) -> Path:
        """The model file."""
        return self.repository / self.name / "1" / "model.onnx"

    def is_right(self, answer: Array) -> bool:
        """Says whether an answer is onnxruntime's, to within rounding."""
        return answer.shape == self.answer.shape and bool(np.allclose(answer, self.answer, rtol=0, atol=_TOLERANCE))


def names() -> list[str]:
    """All workloads, in the order of the results."""
    return list(_MAKERS)


def make(name: str, *, cache: Path | None = None) -> Workload:
    """Returns a workload, its model written where it is missing. Raises click.UsageError on an unknown name."""
    import onnxruntime as ort

    makers = _MAKERS | _APART
    if name not in makers:
        raise click.UsageError(f"no workload '{name}'; there are {', '.join(makers)}")
    maker, shape, forms, connections = makers[name]
    repository = (cache or default_cache()) / _FORMAT / name
    file = repository / name / "1" / "model.onnx"
    if not file.exists():
        import onnx

        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part")
        onnx.save(maker(), aside)
        aside.replace(file)
    question = np.random.default_rng(1).uniform(0, 1, shape).astype(np.float32)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    return Workload(name, repository, question, session.run(["y"], {"x": question})[0], forms, connections)


def _tiny() -> Any:
    """Two small layers: what a request costs is what the server costs."""
    nodes, weights = _dense([4, 16, 3])
    nodes.append(("Softmax", [nodes[-1][2][0]], ["y"], {"axis": -1}))
    return build_model(nodes, weights, ("x", ["batch", 4]), ("y", ["batch", 3]))


def _medium() -> Any:
    """Four convolutions of a small image: about a millisecond on one thread."""
    return _classifier([(32, 1), (32, 1), (64, 2), (64, 1)], size=64)


def _gemm() -> Any:
    """Three layers of 2048 by 2048: one row reads 48 MB of weights, more than caches hold, and so do eight."""
    nodes, weights = _dense([2048, 2048, 2048, 2048])
    nodes.append(("Sigmoid", [nodes[-1][2][0]], ["y"], {}))
    return build_model(nodes, weights, ("x", ["batch", 2048]), ("y", ["batch", 2048]))


def _large() -> Any:
    """Two convolutions with large strides: much to read, little to run, ten numbers to answer."""
    return _classifier([(8, 4), (16, 2)], size=512)


def _large_image() -> Any:
    """From image to image: as much to write as to read."""
    nodes: list[Any] = []
    weights: list[tuple[str, Array]] = []
    last = _convolution(nodes, weights, "x", (3, 4), stride=1)
    _convolution(nodes, weights, last, (4, 3), stride=1, kernel=1)
    nodes.append(("Sigmoid", [nodes[-1][2][0]], ["y"], {}))
    shape = ["batch", 3, 512, 512]
    return build_model(nodes, weights, ("x", shape), ("y", shape))


def _slow() -> Any:
    """Four numbers that a matrix of a million is made of, which is multiplied six times: some 100 ms on one thread."""
    size = 1024
    random = np.random.default_rng(7)
    scale = np.float32(size**-0.5)
    weights: list[tuple[str, Array]] = [
        ("grow", random.standard_normal((4, size), np.float32)),
        ("plane", random.standard_normal((size, size), np.float32) * scale),
        ("turn", random.standard_normal((size, size), np.float32) * scale),
        ("classes", random.standard_normal((size, 3), np.float32) * scale),
        ("axis", np.array([1], np.int64)),
    ]
    nodes: list[Any] = [
        ("MatMul", ["x", "grow"], ["row"], {}),
        ("Unsqueeze", ["row", "axis"], ["lifted"], {}),
        ("Add", ["lifted", "plane"], ["m0"], {}),
    ]
    for index in range(6):
        nodes.append(("MatMul", [f"m{index}", "turn"], [f"n{index}"], {}))
        nodes.append(("Tanh", [f"n{index}"], [f"m{index + 1}"], {}))
    nodes += [
        ("ReduceMean", ["m6"], ["mean"], {"axes": [1], "keepdims": 0}),
        ("MatMul", ["mean", "classes"], ["scores"], {}),
        ("Softmax", ["scores"], ["y"], {"axis": -1}),
    ]
    return build_model(nodes, weights, ("x", ["batch", 4]), ("y", ["batch", 3]))


_FEW_TO_MANY: Final = (1, 8, 32)

#: By name: what makes it, the shape of its question, the forms it is asked in, and over how many connections.
#: The first form is what a quick run takes.
_MAKERS: Final[dict[str, tuple[Callable[[], Any], _Shape, tuple[str, ...], tuple[int, ...]]]] = {
    "tiny": (_tiny, (1, 4), ("json", "binary"), _FEW_TO_MANY),
    "medium": (_medium, (1, 3, 64, 64), ("binary", "json"), _FEW_TO_MANY),
    "gemm": (_gemm, (1, 2048), ("binary",), (32,)),
    "large": (_large, (1, 3, 512, 512), ("json", "binary"), _FEW_TO_MANY),
    "large_image": (_large_image, (1, 3, 512, 512), ("binary", "json"), _FEW_TO_MANY),
}

#: Those that measurements of their own ask for, and nobody asks all servers.
_APART: Final[dict[str, tuple[Callable[[], Any], _Shape, tuple[str, ...], tuple[int, ...]]]] = {
    "slow": (_slow, (1, 4), ("binary", "json"), (64,)),
}


def _dense(widths: Sequence[int]) -> tuple[list[Any], list[tuple[str, Array]]]:
    """Returns layers of these widths from `x`, with Relu between them."""
    nodes: list[Any] = []
    weights: list[tuple[str, Array]] = []
    last = "x"
    for layer, (rows, columns) in enumerate(pairwise(widths)):
        random = np.random.default_rng([layer, 0])
        scale = np.float32((2 / rows) ** 0.5)
        weights.append((f"w{layer}", random.standard_normal((rows, columns), np.float32) * scale))
        weights.append((f"b{layer}", random.standard_normal(columns, np.float32) * np.float32(0.1)))
        nodes.append(("Gemm", [last, f"w{layer}", f"b{layer}"], [f"g{layer}"], {}))
        last = f"g{layer}"
        if layer < len(widths) - 2:
            nodes.append(("Relu", [last], [f"r{layer}"], {}))
            last = f"r{layer}"
    return nodes, weights


def _classifier(layers: Sequence[tuple[int, int]], *, size: int) -> Any:
    """Returns 3x3 convolutions of (channels, stride), the mean of each channel, and ten classes."""
    nodes: list[Any] = []
    weights: list[tuple[str, Array]] = []
    last, channels = "x", 3
    for wanted, stride in layers:
        convolved = _convolution(nodes, weights, last, (channels, wanted), stride=stride)
        last, channels = f"{convolved}_relu", wanted
        nodes.append(("Relu", [convolved], [last], {}))
    nodes += [
        ("GlobalAveragePool", [last], ["mean"], {}),
        ("Flatten", ["mean"], ["features"], {}),
        ("Gemm", ["features", "classes"], ["scores"], {}),
        ("Softmax", ["scores"], ["y"], {"axis": -1}),
    ]
    weights.append(("classes", np.random.default_rng([99, 0]).standard_normal((channels, 10), np.float32)))
    return build_model(nodes, weights, ("x", ["batch", 3, size, size]), ("y", ["batch", 10]))


def _convolution(
    nodes: list[Any],
    weights: list[tuple[str, Array]],
    last: str,
    channels: tuple[int, int],
    *,
    stride: int,
    kernel: int = 3,
) -> str:
    """Adds a convolution of `last` from so many channels to so many; returns its output's name."""
    index, (taken, given) = len(nodes), channels
    scale = np.float32((2 / (taken * kernel**2)) ** 0.5)
    random = np.random.default_rng([index, 0])
    weights.append((f"w{index}", random.standard_normal((given, taken, kernel, kernel), np.float32) * scale))
    attributes = {"pads": [kernel // 2] * 4, "strides": [stride, stride]}
    nodes.append(("Conv", [last, f"w{index}"], [f"c{index}"], attributes))
    return f"c{index}"
