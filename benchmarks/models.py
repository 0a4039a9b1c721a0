"""Models to measure with, generated from seeds, and the right answers to one question for each.

Conv nets of 20 MB of weights (20.5, with 1 MB = 2**20 bytes): nine 3x3 layers of 272 channels on an
8x8 image, then the average of each channel; other sizes have other layers and channels. The answers
are computed here with numpy alone, so that they owe nothing to the runtime that is measured. Files
are kept in a cache directory and made once.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

from benchmarks.places import default_cache

Array: TypeAlias = npt.NDArray[np.float32]

CHANNELS_IN: Final = 16
SIZE: Final = 8
SIZE_MB: Final = 20
_MB: Final = 1 << 20
_LAYERS: Final = 9
#: Channels come in blocks of this many: convolutions are computed so.
_CHANNEL_BLOCK: Final = 16

#: Where the host looks for prepared models, below a repository.
ARTIFACTS: Final = ".modelhost"
_PROGRESS_EVERY: Final = 25

#: Answers are of the order of 1, two models' answers differ by about 1, and float32 in another order
#: of summation by some 1e-5.
TOLERANCE: Final = 1e-3


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a conv net is."""

    layers: int
    channels: int

    @classmethod
    def of_size(cls, size_mb: float, layers: int | None = None) -> Shape:
        """Returns the shape with at least `size_mb` of weights: about nine layers, deeper where that is nearer.

        With `layers` it has so many (two at least), and is as wide as it takes.
        """
        floats = size_mb * _MB / 4 / 9
        if layers is None:
            wide = math.sqrt(floats / (_LAYERS - 1))
            channels = max(1, round(wide / _CHANNEL_BLOCK)) * _CHANNEL_BLOCK
            rest = max(0.0, floats - CHANNELS_IN * channels)
            return cls(1 + max(1, math.ceil(rest / channels**2)), channels)
        channels = _CHANNEL_BLOCK
        while channels * (CHANNELS_IN + (layers - 1) * channels) < floats:
            channels += _CHANNEL_BLOCK
        return cls(layers, channels)

    @property
    def folder(self) -> str:
        """The name in the cache: other sizes or another generator are other files."""
        return f"conv-{self.layers}x{self.channels}-v1"


@dataclass(frozen=True, slots=True)
class Case:
    """One model with a question and its right answer."""

    name: str
    question: Array
    answer: Array

    def is_right(self, answer: Array | None) -> bool:
        """Says whether `answer` is this model's, to within rounding."""
        return (
            answer is not None
            and answer.shape == self.answer.shape
            and bool(np.allclose(answer, self.answer, rtol=0, atol=TOLERANCE))
        )


@dataclass(frozen=True, slots=True)
class ModelSet:
    """A model repository with its cases."""

    directory: Path
    cases: tuple[Case, ...]

    @property
    def files(self) -> list[Path]:
        """The model files, in the order of the cases."""
        return [self.directory / case.name / "1" / "model.onnx" for case in self.cases]

    @property
    def folders(self) -> list[Path]:
        """Where each model lies with its question and its answer, in the order of the cases."""
        return [self.directory.parent / case.name for case in self.cases]

    def forget_pages(self) -> None:
        """Drops the files, prepared ones too, from the page cache: reading them again is charged to the reader."""
        for file in (*self.files, *(self.directory / ARTIFACTS).glob("*/model.*")):
            forget_pages(file)


def forget_pages(file: Path) -> None:
    """Drops a file from the page cache, as far as nobody has it mapped."""
    handle = os.open(file, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def conv_nets(
    count: int,
    *,
    size_mb: float = SIZE_MB,
    layers: int | None = None,
    cache: Path | None = None,
    label: str = "",
    progress: Callable[[str], None] | None = None,
) -> ModelSet:
    """Returns `count` distinct conv nets as a repository of exactly those, made where they are missing.

    Repositories with different labels have the same files; what is prepared of one is not of the other.
    Raises ModuleNotFoundError, with what to install, where onnx is needed and not there.
    """
    shape = Shape.of_size(size_mb, layers)
    store = (cache or default_cache()) / shape.folder
    store.mkdir(parents=True, exist_ok=True)
    if store.stat().st_uid != os.getuid():
        raise PermissionError(f"{store} belongs to somebody else; say where to keep the models with --cache")
    repository = store / "-".join(filter(None, ("repository", str(count), label)))
    cases = []
    for seed in range(count):
        kept = store / f"m{seed:03d}"
        if not (kept / "answer.npy").is_file():
            _make(kept, shape, seed)
            if progress is not None and (seed + 1) % _PROGRESS_EVERY == 0:
                progress(f"{seed + 1} of {count} models made")
        question, answer = np.load(kept / "question.npy"), np.load(kept / "answer.npy")
        cases.append(Case(kept.name, question, answer))
        version = repository / kept.name / "1"
        version.mkdir(parents=True, exist_ok=True)
        if not (version / "model.onnx").exists():
            os.link(kept / "model.onnx", version / "model.onnx")
    return ModelSet(repository, tuple(cases))


def repeat(case: Case, rows: int) -> Array:
    """Returns the question `rows` times in one batch, for runs that take long and much memory."""
    return np.repeat(case.question, rows, axis=0)


def _make(directory: Path, shape: Shape, seed: int) -> None:
    """Writes model, question and answer; the directory appears complete or not at all."""
    weights = list(_weights(shape, seed))
    question = np.random.default_rng([seed, 1]).standard_normal((1, CHANNELS_IN, SIZE, SIZE), np.float32)
    working = Path(tempfile.mkdtemp(prefix=directory.name, dir=directory.parent))
    try:
        _write_onnx(working / "model.onnx", weights)
        np.save(working / "question.npy", question)
        np.save(working / "answer.npy", _reference(weights, question))
        shutil.rmtree(directory, ignore_errors=True)
        working.chmod(0o755)  # readable for the user of a container that has it mounted
        working.rename(directory)
    except BaseException:
        shutil.rmtree(working, ignore_errors=True)
        raise


def _weights(shape: Shape, seed: int) -> Iterator[tuple[Array, Array]]:
    """Yields kernel and bias of each layer; scaled so that values keep their size from layer to layer."""
    random, channels = np.random.default_rng([seed, 0]), CHANNELS_IN
    for _ in range(shape.layers):
        scale = np.float32((2 / (channels * 9)) ** 0.5)
        kernel = random.standard_normal((shape.channels, channels, 3, 3), np.float32) * scale
        yield kernel, random.standard_normal(shape.channels, np.float32) * np.float32(0.1)
        channels = shape.channels


def _reference(weights: list[tuple[Array, Array]], question: Array) -> Array:
    """The forward pass as a sum over windows: what the definition of a convolution says."""
    image = question[0]
    for kernel, bias in weights:
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        flat = windows.transpose(1, 2, 0, 3, 4).reshape(SIZE * SIZE, -1)
        rows = flat @ kernel.reshape(len(kernel), -1).T + bias
        image = np.maximum(rows.T.reshape(len(kernel), SIZE, SIZE), 0)
    answer: Array = image.mean(axis=(1, 2), dtype=np.float32)[None]
    return answer


def _write_onnx(file: Path, weights: list[tuple[Array, Array]]) -> None:
    try:
        import onnx
        from onnx import TensorProto, helper, numpy_helper
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "generating models needs onnx, which only the test dependency group has: `make test` installs it, "
            "or `pip install --require-hashes -r lock/test.txt`"
        ) from error
    nodes, tensors, last = [], [], "x"
    for index, (kernel, bias) in enumerate(weights):
        tensors += [numpy_helper.from_array(kernel, f"w{index}"), numpy_helper.from_array(bias, f"b{index}")]
        nodes.append(helper.make_node("Conv", [last, f"w{index}", f"b{index}"], [f"c{index}"], pads=[1] * 4))
        nodes.append(helper.make_node("Relu", [f"c{index}"], [f"r{index}"]))
        last = f"r{index}"
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["mean"]))
    nodes.append(helper.make_node("Flatten", ["mean"], ["y"]))
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", CHANNELS_IN, SIZE, SIZE])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", len(weights[-1][0])])]
    graph = helper.make_graph(nodes, "conv", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
