"""Models to measure with, generated from seeds, and the right answers to one question for each.

Conv nets of 20 MB of weights (20.5, with 1 MB = 2**20 bytes): nine 3x3 layers of 272 channels on an
8x8 image, then the average of each channel. The answers are computed here with numpy alone, so that
they owe nothing to the runtime that is measured. Files are kept in a cache directory and made once.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[np.float32]

CHANNELS_IN: Final = 16
CHANNELS: Final = 272
SIZE: Final = 8
LAYERS: Final = 9
#: In the cache's name: other sizes or another generator are other files.
_FORMAT: Final = f"conv-{LAYERS}x{CHANNELS}-v1"

#: Answers are of the order of 1, two models' answers differ by about 1, and float32 in another order
#: of summation by some 1e-5.
TOLERANCE: Final = 1e-3


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

    def forget_pages(self) -> None:
        """Drops the files from the page cache, so that reading them again is charged to the reader."""
        for file in self.directory.glob("*/*/*.onnx"):
            handle = os.open(file, os.O_RDONLY)
            try:
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(handle)


def conv_nets(count: int, *, cache: Path | None = None) -> ModelSet:
    """Returns `count` distinct conv nets as a repository of exactly those, made where they are missing.

    Raises ModuleNotFoundError, with what to install, where onnx is needed and not there.
    """
    store = (cache or default_cache()) / _FORMAT
    store.mkdir(parents=True, exist_ok=True)
    if store.stat().st_uid != os.getuid():
        raise PermissionError(f"{store} belongs to somebody else; say where to keep the models with --cache")
    repository = store / f"repository-{count}"
    cases = []
    for seed in range(count):
        kept = store / f"m{seed:03d}"
        if not (kept / "answer.npy").is_file():
            _make(kept, seed)
        question, answer = np.load(kept / "question.npy"), np.load(kept / "answer.npy")
        cases.append(Case(kept.name, question, answer))
        version = repository / kept.name / "1"
        version.mkdir(parents=True, exist_ok=True)
        if not (version / "model.onnx").exists():
            os.link(kept / "model.onnx", version / "model.onnx")
    return ModelSet(repository, tuple(cases))


def default_cache() -> Path:
    """The cache directory of this user."""
    return Path(tempfile.gettempdir()) / f"modelhost-benchmarks-{os.getuid()}"


def repeat(case: Case, rows: int) -> Array:
    """Returns the question `rows` times in one batch, for runs that take long and much memory."""
    return np.repeat(case.question, rows, axis=0)


def _make(directory: Path, seed: int) -> None:
    """Writes model, question and answer; the directory appears complete or not at all."""
    weights = list(_weights(seed))
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


def _weights(seed: int) -> Iterator[tuple[Array, Array]]:
    """Yields kernel and bias of each layer; scaled so that values keep their size from layer to layer."""
    random, channels = np.random.default_rng([seed, 0]), CHANNELS_IN
    for _ in range(LAYERS):
        scale = np.float32((2 / (channels * 9)) ** 0.5)
        kernel = random.standard_normal((CHANNELS, channels, 3, 3), np.float32) * scale
        yield kernel, random.standard_normal(CHANNELS, np.float32) * np.float32(0.1)
        channels = CHANNELS


def _reference(weights: list[tuple[Array, Array]], question: Array) -> Array:
    """The forward pass as a sum over windows: what the definition of a convolution says."""
    image = question[0]
    for kernel, bias in weights:
        padded = np.pad(image, ((0, 0), (1, 1), (1, 1)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
        flat = windows.transpose(1, 2, 0, 3, 4).reshape(SIZE * SIZE, -1)
        rows = flat @ kernel.reshape(CHANNELS, -1).T + bias
        image = np.maximum(rows.T.reshape(CHANNELS, SIZE, SIZE), 0)
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
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", CHANNELS])]
    graph = helper.make_graph(nodes, "conv", inputs, outputs, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), file)
