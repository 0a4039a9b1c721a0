"""The models of a soak: of many kinds and sizes, each with questions, and with what ONNX Runtime answers here.

Files come from seeds and are kept in the cache; a run has a repository of its own, of links to them, since it
replaces some. Every model exists twice, with other weights, so that one can be swapped for the other and an answer
tells which of them has given it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np

from benchmarks.places import default_cache

#: Another generator is other files.
_FORMAT: Final = "soak-v1"
#: Answers are of order 1; another order of summation, prepacked weights and shared runs change some 1e-5.
_TOLERANCE: Final = 1e-3

#: Values of one tensor, or the JSON of each element of a sequence.
Values: TypeAlias = Any
Tensors: TypeAlias = dict[str, Values]


@dataclass(frozen=True, slots=True)
class Question:
    """Inputs, what is right, and what is right once the model has been swapped; by tensor name."""

    inputs: Tensors
    answers: tuple[Tensors, Tensors]


@dataclass(frozen=True, slots=True)
class Case:
    """One model, and the questions that are asked of it."""

    name: str
    kind: str
    questions: tuple[Question, ...]
    files: tuple[Path, Path]
    """Its two variants."""

    @property
    def is_on_heap(self) -> bool:
        """Whether it holds all of its weights as committed memory, so that few fit at once."""
        return self.kind == "heap"


def agrees(wanted: Tensors, got: Tensors) -> bool:
    """Says whether an answer is the right one, to within rounding."""
    return wanted.keys() == got.keys() and all(_agrees(value, got[name]) for name, value in wanted.items())


def _agrees(wanted: Values, got: Values) -> bool:
    if isinstance(wanted, list):  # the elements of a sequence: each an object of numbers
        got = [json.loads(element) if isinstance(element, str) else element for element in got]
        return len(wanted) == len(got) and all(
            one.keys() == other.keys() and all(abs(one[key] - other[key]) <= _TOLERANCE for key in one)
            for one, other in zip(wanted, got, strict=True)
        )
    got = np.asarray(got, dtype=wanted.dtype)
    if wanted.shape != got.shape:
        return False
    if wanted.dtype == object:
        return bool((wanted == got).all())
    return bool(np.allclose(wanted, got, rtol=0, atol=_TOLERANCE))


def make(
    count: int, directory: Path, *, cache: Path | None = None, progress: Callable[[str], None]
) -> tuple[list[Case], list[Case]]:
    """Fills `directory` with `count` models and returns the residents and the others.

    Raises ModuleNotFoundError where onnx, which only the test dependency group has, is not there.
    """
    store = (cache or default_cache()) / _FORMAT
    kinds = RESIDENTS[: max(1, min(len(RESIDENTS), count // 2))]
    residents = [_case(f"resident_{kind}", kind, seed, store) for seed, kind in enumerate(kinds)]
    others = []
    for index in range(max(0, count - len(residents))):
        kind = OTHERS[index % len(OTHERS)]
        others.append(_case(f"m{index:02}_{kind}", kind, 100 + index, store))
        if index % 10 == 9:
            progress(f"{index + 1} models are there, with their answers")
    for case in (*residents, *others):
        put(case.files[0], directory / case.name / "1" / "model.onnx")
        if case.is_on_heap:
            (directory / case.name / "model.toml").write_text('optimization = "extended"\n')
    return residents, others


def put(file: Path, target: Path) -> None:
    """Puts a model there in one step, as a link where that works; what was there goes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = target.with_suffix(".part")
    aside.unlink(missing_ok=True)
    try:
        os.link(file, aside)
    except OSError:  # another file system
        shutil.copyfile(file, aside)
    aside.replace(target)


def _case(name: str, kind: str, seed: int, store: Path) -> Case:
    """Returns one model with its questions; writes both variants where they are missing."""
    maker, ask = KINDS[kind]
    files = []
    for variant in (0, 1):
        file = store / f"{kind}-{seed}-{variant}.onnx"
        if not file.exists():
            import onnx

            file.parent.mkdir(parents=True, exist_ok=True)
            aside = file.with_suffix(f".{os.getpid()}.part")
            onnx.save(maker(np.random.default_rng([seed, variant])), aside)
            aside.replace(file)
        files.append(file)
    asked = list(ask(np.random.default_rng([seed, 9])))
    answers = [_answers(file, asked) for file in files]
    questions = tuple(Question(inputs, pair) for inputs, *pair in zip(asked, *answers, strict=True))  # type: ignore[arg-type]
    return Case(name, kind, questions, (files[0], files[1]))


def _answers(file: Path, asked: Sequence[Tensors]) -> list[Tensors]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return [dict(zip(names, map(_plain, session.run(names, inputs)), strict=True)) for inputs in asked]


def _plain(value: Any) -> Values:
    """Returns a tensor as it is, and of a sequence of maps what their JSON has."""
    if isinstance(value, list):
        return [{str(key): float(number) for key, number in element.items()} for element in value]
    return value


# --- kinds -----------------------------------------------------------------------------------------------


def _graph(
    nodes: Sequence[tuple[str, list[str], list[str], dict[str, Any]]],
    weights: dict[str, Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
) -> Any:
    from onnx import helper, numpy_helper

    made = []
    for kind, taken, given, attributes in nodes:
        domain = "ai.onnx.ml" if kind in ("ZipMap", "LabelEncoder") else ""
        made.append(helper.make_node(kind, taken, given, domain=domain, **attributes))
    tensors = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(made, "soak", list(inputs), list(outputs), tensors)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def _info(name: str, kind: str, *shape: int | str) -> Any:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.DataType.Value(kind), list(shape))


def _normal(random: np.random.Generator, *shape: int, scale: float = 1.0) -> Any:
    return random.standard_normal(shape, np.float32) * np.float32(scale)


def _dense(random: np.random.Generator, *widths: int) -> Any:
    """Layers of these widths, FP32 from end to end."""
    nodes: list[Any] = []
    weights: dict[str, Any] = {}
    last = "x"
    for layer, (rows, columns) in enumerate(pairwise(widths)):
        weights[f"w{layer}"] = _normal(random, rows, columns, scale=rows**-0.5)
        weights[f"b{layer}"] = _normal(random, columns)
        nodes.append(("Gemm", [last, f"w{layer}", f"b{layer}"], [f"g{layer}"], {}))
        last = "y" if layer == len(widths) - 2 else f"t{layer}"
        nodes.append(("Tanh", [f"g{layer}"], [last], {}))
    return _graph(nodes, weights, [_info("x", "FLOAT", "n", widths[0])], [_info("y", "FLOAT", "n", widths[-1])])


def _conv(random: np.random.Generator, layers: int, channels: int) -> Any:
    """So many convolutions of an image of 8 by 8, and the mean of each channel."""
    nodes: list[Any] = []
    weights: dict[str, Any] = {}
    last, taken = "x", 3
    for layer in range(layers):
        weights[f"w{layer}"] = _normal(random, channels, taken, 3, 3, scale=(2 / (9 * taken)) ** 0.5)
        weights[f"b{layer}"] = _normal(random, channels, scale=0.1)
        nodes.append(("Conv", [last, f"w{layer}", f"b{layer}"], [f"c{layer}"], {"pads": [1] * 4}))
        nodes.append(("Relu", [f"c{layer}"], [f"r{layer}"], {}))
        last, taken = f"r{layer}", channels
    nodes += [("GlobalAveragePool", [last], ["mean"], {}), ("Flatten", ["mean"], ["y"], {})]
    return _graph(nodes, weights, [_info("x", "FLOAT", "n", 3, 8, 8)], [_info("y", "FLOAT", "n", channels)])


_WORDS: Final = ("setosa", "versicolor", "virginica", "größer", "\N{SNOWMAN}", "")


def _texts(random: np.random.Generator) -> Any:
    """Texts to texts, by a table that is shuffled."""
    table = {"keys_strings": list(_WORDS), "values_strings": [f"{int(n)}." for n in random.integers(0, 10**9, 6)]}
    node = ("LabelEncoder", ["x"], ["y"], {**table, "default_string": "?"})
    return _graph([node], {}, [_info("x", "STRING", "n")], [_info("y", "STRING", "n")])


def _classes(random: np.random.Generator) -> Any:
    """A classifier's end as scikit-learn exports have it: a label, and a sequence of maps."""
    from onnx import TensorProto, helper

    nodes: list[Any] = [
        ("MatMul", ["x", "w"], ["scores"], {}),
        ("Softmax", ["scores"], ["shares"], {"axis": 1}),
        ("ArgMax", ["shares"], ["label"], {"axis": 1, "keepdims": 0}),
        ("ZipMap", ["shares"], ["probabilities"], {"classlabels_strings": ["a", "b", "c"]}),
    ]
    kind = helper.make_map_type_proto(TensorProto.STRING, helper.make_tensor_type_proto(TensorProto.FLOAT, None))
    sequence = helper.make_value_info("probabilities", helper.make_sequence_type_proto(kind))
    given = [_info("label", "INT64", "n"), sequence]
    return _graph(nodes, {"w": _normal(random, 4, 3)}, [_info("x", "FLOAT", "n", 4)], given)


def _recurrent(random: np.random.Generator) -> Any:
    """One LSTM of 256 units over the steps of a sequence."""
    width, hidden = 32, 256
    weights = {
        "w": _normal(random, 1, 4 * hidden, width, scale=0.1),
        "r": _normal(random, 1, 4 * hidden, hidden, scale=0.05),
        "at": np.array([0], np.int64),
    }
    nodes: list[Any] = [
        ("Transpose", ["x"], ["steps"], {"perm": [1, 0, 2]}),
        ("LSTM", ["steps", "w", "r"], ["", "last"], {"hidden_size": hidden}),
        ("Squeeze", ["last", "at"], ["y"], {}),
    ]
    return _graph(nodes, weights, [_info("x", "FLOAT", "n", "steps", width)], [_info("y", "FLOAT", "n", hidden)])


def _embedding(random: np.random.Generator) -> Any:
    """A table of 20 MB that is only looked up."""
    nodes: list[Any] = [
        ("Gather", ["table", "x"], ["found"], {}),
        ("ReduceMean", ["found"], ["y"], {"axes": [1], "keepdims": 0}),
    ]
    table = {"table": _normal(random, 20_000, 256)}
    return _graph(nodes, table, [_info("x", "INT64", "n", "steps")], [_info("y", "FLOAT", "n", 256)])


def _ask_floats(*shape: int) -> Callable[[np.random.Generator], Iterator[Tensors]]:
    def ask(random: np.random.Generator) -> Iterator[Tensors]:
        for rows in (1, 1, 3):
            yield {"x": _normal(random, rows, *shape)}

    return ask


def _ask_texts(random: np.random.Generator) -> Iterator[Tensors]:
    for rows in (1, 4):
        yield {"x": random.choice(np.array([*_WORDS, "unknown"], object), rows)}


def _ask_places(random: np.random.Generator) -> Iterator[Tensors]:
    for rows in (1, 2):
        yield {"x": random.integers(0, 20_000, (rows, 16))}


_Maker: TypeAlias = Callable[[np.random.Generator], Any]
_Asker: TypeAlias = Callable[[np.random.Generator], Iterator[Tensors]]

#: By kind: what makes the model, and what makes its questions.
KINDS: Final[dict[str, tuple[_Maker, _Asker]]] = {
    "dense": (lambda random: _dense(random, 4, 16, 3), _ask_floats(4)),
    "texts": (_texts, _ask_texts),
    "classes": (_classes, _ask_floats(4)),
    "gemm": (lambda random: _dense(random, 724, 724, 724), _ask_floats(724)),  # 4 MB
    "conv": (lambda random: _conv(random, 9, 86), _ask_floats(3, 8, 8)),  # 2 MB
    "conv20": (lambda random: _conv(random, 9, 272), _ask_floats(3, 8, 8)),
    "heap": (lambda random: _conv(random, 9, 272), _ask_floats(3, 8, 8)),  # as its options have it
    "recurrent": (_recurrent, _ask_floats(8, 32)),
    "embedding": (_embedding, _ask_places),
}

RESIDENTS: Final = ("dense", "texts", "classes", "gemm", "conv", "conv20")

#: In this order, again and again: 54 of them have 12 of 20 MB that lie on the heap, more than fit at 256 MB.
OTHERS: Final = (
    *("dense", "heap", "gemm", "conv", "texts", "heap", "classes", "dense", "conv20", "gemm", "heap", "dense", "conv"),
    *("embedding", "heap", "dense", "classes", "gemm", "recurrent", "heap", "conv", "texts", "dense", "conv20"),
    *("heap", "gemm", "dense"),
)
