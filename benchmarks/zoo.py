"""Models of many kinds to measure predictions and prepared loads with: made here, shipped with onnx, or given.

All of them end up in one directory as a repository, so that they can be prepared and served like any
other. One file each: none has external data.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import click
import numpy as np

from benchmarks.models import conv_nets
from benchmarks.places import ROOT, default_cache

_FORMAT: Final = "zoo-v1"


def light_models() -> dict[str, Path]:
    """The networks that the onnx package ships without weights; the graph makes them up."""
    import onnx

    folder = Path(onnx.__file__).parent / "backend/test/data/light"
    return {file.stem: file for file in sorted(folder.glob("*.onnx"))}


def repository(label: str, names: Sequence[str], *, cache: Path | None = None, given: Sequence[Path] = ()) -> Path:
    """Returns a directory with exactly the named models and the given files, made where they are missing."""
    store = (cache or default_cache()) / _FORMAT
    directory = store / label
    files = {name: _file(name, store, cache) for name in names} | {file.stem: file.resolve() for file in given}
    for name, file in files.items():
        place(file, directory / name / "1" / "model.onnx")
    for entry in directory.iterdir():
        if entry.name not in files and not entry.name.startswith("."):
            shutil.rmtree(entry)
    return directory


def shipped_models() -> dict[str, Path]:
    """The models that this project ships."""
    return {file.parent.parent.name: file for file in sorted((ROOT / "models").glob("*/*/model.onnx"))}


def made_models() -> list[str]:
    """The names of those that are made here."""
    return ["conv20", "conv2", *_MAKERS]


def _file(name: str, store: Path, cache: Path | None) -> Path:
    """Finds a model by name, or makes it."""
    for known in (shipped_models(), light_models()):
        if name in known:
            return known[name]
    if name in ("conv20", "conv2"):
        return conv_nets(2, size_mb=float(name.removeprefix("conv")), cache=cache).files[0]
    if name not in _MAKERS:
        known_names = sorted([*shipped_models(), *light_models(), *made_models()])
        raise click.UsageError(f"no model '{name}'; there are {', '.join(known_names)}")
    file = store / "made" / f"{name}.onnx"
    if not file.exists():
        import onnx

        file.parent.mkdir(parents=True, exist_ok=True)
        aside = file.with_suffix(".part")
        onnx.save(_MAKERS[name](), aside)
        aside.replace(file)
    return file


def place(file: Path, target: Path) -> None:
    """Puts a file there, as a link where that works."""
    if target.exists() and target.stat().st_size == file.stat().st_size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(file, target)
    except OSError:  # another file system
        shutil.copyfile(file, target)


# --- makers --------------------------------------------------------------------------------------------


def _gemm() -> Any:
    """25 dense layers of 1024 by 1024: 100 MB that are packed for multiplication."""
    width, layers = 1024, 25
    nodes: list[Any] = []
    weights = []
    last = "x"
    for layer, random in enumerate(_seeds(layers)):
        weights += [
            (f"w{layer}", random.standard_normal((width, width), np.float32) * np.float32((2 / width) ** 0.5)),
            (f"b{layer}", random.standard_normal(width, np.float32)),
        ]
        nodes += [
            ("Gemm", [last, f"w{layer}", f"b{layer}"], [f"g{layer}"], {}),
            ("Relu", [f"g{layer}"], [f"r{layer}"], {}),
        ]
        last = f"r{layer}"
    nodes.append(("Identity", [last], ["y"], {}))
    return build_model(nodes, weights, ("x", ["batch", width]), ("y", ["batch", width]))


def _matmul() -> Any:
    """Six products of 512 by 512 over the steps of a sequence."""
    width, layers = 512, 6
    nodes: list[Any] = []
    weights = []
    last = "x"
    for layer, random in enumerate(_seeds(layers)):
        weights.append((f"w{layer}", random.standard_normal((width, width), np.float32) / np.float32(width**0.5)))
        nodes += [("MatMul", [last, f"w{layer}"], [f"m{layer}"], {}), ("Tanh", [f"m{layer}"], [f"t{layer}"], {})]
        last = f"t{layer}"
    nodes.append(("Identity", [last], ["y"], {}))
    shape = ["batch", "steps", width]
    return build_model(nodes, weights, ("x", shape), ("y", shape))


def _attention() -> Any:
    """Attention of a sequence on itself: what a run takes grows with the square of its length."""
    width = 64
    random = np.random.default_rng(0)
    weights = [
        (name, random.standard_normal((width, width), np.float32) / np.float32(width**0.5)) for name in ("q", "k", "v")
    ]
    nodes: list[Any] = [
        ("MatMul", ["x", "q"], ["query"], {}),
        ("MatMul", ["x", "k"], ["key"], {}),
        ("MatMul", ["x", "v"], ["value"], {}),
        ("Transpose", ["key"], ["turned"], {"perm": [0, 2, 1]}),
        ("MatMul", ["query", "turned"], ["scores"], {}),
        ("Softmax", ["scores"], ["shares"], {"axis": -1}),
        ("MatMul", ["shares", "value"], ["y"], {}),
    ]
    shape = ["batch", "steps", width]
    return build_model(nodes, weights, ("x", shape), ("y", shape))


def _expanding() -> Any:
    """1 KB in, 16 MB inside for each row: activations are thousands of times the input."""
    inside = 16384
    weights = [
        ("row", np.random.default_rng(0).standard_normal((1, 1, inside), np.float32)),
        ("at", np.array([2], np.int64)),
    ]
    nodes: list[Any] = [
        ("Unsqueeze", ["x", "at"], ["column"], {}),
        ("Mul", ["column", "row"], ["wide"], {}),
        ("ReduceMean", ["wide"], ["y"], {"axes": [2], "keepdims": 0}),
    ]
    return build_model(nodes, weights, ("x", ["batch", 256]), ("y", ["batch", 256]))


def _embedding() -> Any:
    """A table of 20 MB that is only looked up."""
    weights = [("table", np.random.default_rng(0).standard_normal((20000, 256), np.float32))]
    nodes: list[Any] = [
        ("Gather", ["table", "x"], ["found"], {}),
        ("ReduceMean", ["found"], ["y"], {"axes": [1], "keepdims": 0}),
    ]
    return build_model(nodes, weights, ("x", ["batch", "steps"]), ("y", ["batch", 256]), integers=True)


def _recurrent() -> Any:
    """One LSTM of 512 units."""
    width, hidden = 128, 512
    random = np.random.default_rng(0)
    weights = [
        ("w", random.standard_normal((1, 4 * hidden, width), np.float32) * np.float32(0.05)),
        ("r", random.standard_normal((1, 4 * hidden, hidden), np.float32) * np.float32(0.05)),
    ]
    nodes: list[Any] = [
        ("Transpose", ["x"], ["steps_first"], {"perm": [1, 0, 2]}),
        ("LSTM", ["steps_first", "w", "r"], ["", "last"], {"hidden_size": hidden}),
        ("Squeeze", ["last", "at"], ["y"], {}),
    ]
    weights.append(("at", np.array([0], np.int64)))
    return build_model(nodes, weights, ("x", ["batch", "steps", width]), ("y", ["batch", hidden]))


_MAKERS: Final[dict[str, Callable[[], Any]]] = {
    "gemm": _gemm,
    "matmul": _matmul,
    "attention": _attention,
    "expanding": _expanding,
    "embedding": _embedding,
    "recurrent": _recurrent,
}


def _seeds(count: int) -> list[np.random.Generator]:
    return [np.random.default_rng(seed) for seed in range(count)]


def build_model(
    nodes: Sequence[tuple[str, list[str], list[str], dict[str, Any]]],
    weights: Sequence[tuple[str, Any]],
    x: tuple[str, list[Any]],
    y: tuple[str, list[Any]],
    *,
    integers: bool = False,
) -> Any:
    """Returns an ONNX model of `nodes` (type, inputs, outputs, attributes) with one input and one output."""
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        [helper.make_node(kind, inputs, outputs, **attributes) for kind, inputs, outputs, attributes in nodes],
        "made",
        [helper.make_tensor_value_info(x[0], TensorProto.INT64 if integers else TensorProto.FLOAT, x[1])],
        [helper.make_tensor_value_info(y[0], TensorProto.FLOAT, y[1])],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
