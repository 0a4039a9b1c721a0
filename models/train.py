"""Make the shipped models again: train, export, check, write.

``python models/train.py`` writes, next to this file, ``<name>/1/model.onnx``, ``SHA256SUMS`` and
the table of figures in ``README.md``. The data comes with scikit-learn, nothing is downloaded. The
graphs stand here as text, so there is no exporter whose version could change them. Serving them is
left to ``modelhost``.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx.helper import make_attribute
from onnx.numpy_helper import from_array
from onnx.parser import parse_model
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import OneHotEncoder
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_limits

Array = npt.NDArray[np.generic]
Floats = npt.NDArray[np.float64]
Tensors = Mapping[str, Array]

MODELS = Path(__file__).resolve().parent
SEED = 0
FAINTEST = 1e-6  # an image is scaled by its darkest pixel, but by no less
TOLERANCE = 1e-4  # graphs compute in float32, scikit-learn in float64
TABLE_HEAD = """\
| model | training rows | held-out rows | measure | on held-out rows | file size, bytes |
| --- | ---: | ---: | --- | ---: | ---: |
"""
TABLE_BEGIN, TABLE_END = "<!-- figures: written by train.py -->\n", "<!-- end of figures -->"

# The oldest versions that hold all operators used: more runtimes can read the files.
HEADER = '<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 3], producer_name: "modelhost">'
# Each image is scaled by its own darkest pixel first, so that 0..16, 0..1 and 0..255 mean the same;
# one without ink stays zeros.
DIGITS = """digits (float[batch, 1, 8, 8] image) => (float[batch, 10] logits) {
    darkest = ReduceMax <axes = [1, 2, 3], keepdims = 1> (image)
    scale = Max (darkest, faintest)
    ink = Div (image, scale)
    maps = Conv <pads = [1, 1, 1, 1]> (ink, kernels, biases)
    edges = Relu (maps)
    pooled = AveragePool <kernel_shape = [2, 2], strides = [2, 2]> (edges)
    features = Flatten (pooled)
    logits = Gemm (features, dense, offset)
}"""
WINE = """wine (float[batch, 13] measurements)
    => (string[batch] label, float[batch, 3] probabilities) {
    label, probabilities = ai.onnx.ml.TreeEnsembleClassifier (measurements)
}"""
# An unknown species gives zeros: it must not fail the rows it shares a batch with.
IRIS_PETALS = """iris_petals (string[batch, 1] species, float[batch, 2] sepal)
    => (float[batch, 2] petal) {
    columns = ai.onnx.ml.OneHotEncoder <zeros = 1> (species)
    is_species = Flatten (columns)
    features = Concat <axis = 1> (is_species, sepal)
    petal = Gemm (features, coefficients, intercept)
}"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """One exported model with what is needed to check it on rows it never saw."""

    proto: onnx.ModelProto
    inputs: Tensors  # held-out rows, named like the inputs of the graph
    expected: Tensors  # what scikit-learn answers, named like the outputs of the graph
    measure: str
    score: Callable[[Tensors], float]  # answers to the held-out rows, judged by the truth
    train_rows: int


def split(*arrays: Array, by: Array) -> list[Array]:
    """Split rows into training and held-out part, the same way for every model."""
    return list(train_test_split(*arrays, test_size=0.25, random_state=SEED, stratify=by))


def build(graph: str, summary: str, **weights: Floats) -> onnx.ModelProto:
    """Turn the text of a graph into a model with these weights."""
    proto = parse_model(HEADER + graph)
    proto.doc_string = proto.graph.doc_string = summary
    proto.model_version = 1
    for name, values in weights.items():
        proto.graph.initializer.append(from_array(np.array(values, np.float32, order="C"), name))
    return proto


def patches(images: Array) -> Floats:
    """Return the 3x3 surroundings of every pixel, shape [rows, 8, 8, 9], zeros outside."""
    padded = np.pad(images[:, 0].astype(np.float64), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return windows.reshape(len(images), 8, 8, 9)


def learn_filters(images: Array) -> tuple[Floats, Floats]:
    """Return kernels [16, 9] and biases [16]: the main directions of image patches, both signs.

    A ReLU keeps one side of a direction, hence each one twice.
    """
    pca = PCA(n_components=8, random_state=SEED).fit(patches(images).reshape(-1, 9))
    kernels = np.concatenate([pca.components_, -pca.components_])
    return kernels, -kernels @ pca.mean_


def convolve(images: Array, kernels: Floats, biases: Floats) -> Floats:
    """Return what the graph computes up to `features`, shape [rows, 256]."""
    maps = np.maximum(patches(images) @ kernels.T + biases, 0).transpose(0, 3, 1, 2)
    pooled: Floats = maps.reshape(-1, 16, 4, 2, 4, 2).mean(axis=(3, 5))
    return pooled.reshape(-1, 256)


def train_digits() -> Trained:
    """Train the convolutional net: filters from PCA of patches, then logistic regression."""
    data = load_digits()
    images = data.images.astype(np.float32).reshape(-1, 1, 8, 8)
    train_x, test_x, train_y, test_y = split(images, data.target, by=data.target)
    train_ink, test_ink = (part / part.max(axis=(1, 2, 3), keepdims=True) for part in (train_x, test_x))
    kernels, biases = learn_filters(train_ink)
    train_f, test_f = (convolve(part, kernels, biases) for part in (train_ink, test_ink))
    dense = LogisticRegression(C=10.0, max_iter=2000).fit(train_f, train_y)
    proto = build(
        DIGITS,
        "Handwritten digits 0..9: one logit per digit from an 8x8 image, ink above 0 on any scale.",
        faintest=np.array(FAINTEST),
        kernels=kernels.reshape(16, 1, 3, 3),
        biases=biases,
        dense=dense.coef_.T,
        offset=dense.intercept_,
    )
    return Trained(
        proto=proto,
        inputs={"image": test_x},
        expected={"logits": dense.decision_function(test_f)},
        measure="accuracy",
        score=lambda answers: float(np.mean(answers["logits"].argmax(axis=1) == test_y)),
        train_rows=len(train_x),
    )


def train_wine() -> Trained:
    """Train the forest on the chemical analysis of wines from three cultivators."""
    data = load_wine()
    rows, labels = data.data.astype(np.float32), data.target_names[data.target]
    train_x, test_x, train_y, test_y = split(rows, labels, by=data.target)
    forest = RandomForestClassifier(n_estimators=50, random_state=SEED).fit(train_x, train_y)
    return Trained(
        proto=build_wine(forest),
        inputs={"measurements": test_x},
        expected={"label": forest.predict(test_x), "probabilities": forest.predict_proba(test_x)},
        measure="accuracy",
        score=lambda answers: float(np.mean(answers["label"] == test_y)),
        train_rows=len(train_x),
    )


def build_wine(forest: RandomForestClassifier) -> onnx.ModelProto:
    """Write the forest into the attributes of its node, one array per attribute for all trees."""
    summary = "Which of three cultivators grew a wine, from thirteen chemical measurements."
    proto = build(WINE, summary)
    trees = [tree_attributes(*item, len(forest)) for item in enumerate(forest.estimators_)]
    attributes = {name: np.concatenate([tree[name] for tree in trees]) for name in trees[0]}
    for name, values in {"classlabels_strings": forest.classes_, **attributes}.items():
        proto.graph.node[0].attribute.append(make_attribute(name, values.tolist()))
    return proto


def tree_attributes(tree_id: int, estimator: DecisionTreeClassifier, trees: int) -> Tensors:
    """Return one tree's share of the operator's attributes; a leaf votes with its class shares."""
    tree = estimator.tree_
    is_leaf = tree.children_left < 0
    leaves = np.flatnonzero(is_leaf)
    votes = tree.value[leaves, 0] / trees
    return {
        "nodes_treeids": np.full(tree.node_count, tree_id),
        "nodes_nodeids": np.arange(tree.node_count),
        "nodes_featureids": np.where(is_leaf, 0, tree.feature),
        "nodes_values": np.where(is_leaf, 0, round_down(tree.threshold)),
        "nodes_modes": np.where(is_leaf, "LEAF", "BRANCH_LEQ"),
        "nodes_truenodeids": np.where(is_leaf, 0, tree.children_left),
        "nodes_falsenodeids": np.where(is_leaf, 0, tree.children_right),
        "class_treeids": np.full(votes.size, tree_id),
        "class_nodeids": np.repeat(leaves, votes.shape[1]),
        "class_ids": np.tile(np.arange(votes.shape[1]), len(leaves)),
        "class_weights": votes.ravel(),
    }


def round_down(thresholds: Floats) -> npt.NDArray[np.float32]:
    """Return the largest float32 not above each: ``x <= t`` then holds for the same float32 x."""
    near = thresholds.astype(np.float32)
    return np.where(near > thresholds, np.nextafter(near, np.float32(-np.inf)), near)


def train_iris_petals() -> Trained:
    """Train a linear model for the petals of an iris, from its species and its sepals."""
    data = load_iris()
    kind = data.target
    species = data.target_names[kind].astype(object).reshape(-1, 1)
    sepals, petals = np.split(data.data.astype(np.float32), 2, axis=1)
    train_s, test_s, train_x, test_x, train_y, test_y = split(species, sepals, petals, by=kind)
    encoder = OneHotEncoder(sparse_output=False, handle_unknown="ignore").fit(train_s)
    linear = LinearRegression().fit(np.hstack([encoder.transform(train_s), train_x]), train_y)
    summary = "Length and width of an iris petal in cm, from the species and the sepal's size in cm."
    proto = build(IRIS_PETALS, summary, coefficients=linear.coef_.T, intercept=linear.intercept_)
    names = encoder.categories_[0].tolist()
    proto.graph.node[0].attribute.append(make_attribute("cats_strings", names))
    return Trained(
        proto=proto,
        inputs={"species": test_s, "sepal": test_x},
        expected={"petal": linear.predict(np.hstack([encoder.transform(test_s), test_x]))},
        measure="R²",
        score=lambda answers: float(r2_score(test_y, answers["petal"])),
        train_rows=len(train_x),
    )


def check(model: Trained, data: bytes) -> str:
    """Score the exported model on the held-out rows and return its line of the table.

    Raises AssertionError when onnxruntime and scikit-learn disagree, on all rows or on one alone.
    """
    onnx.checker.check_model(data, full_check=True)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = list(model.expected)
    together = session.run(names, dict(model.inputs))
    rows = len(together[0])
    for row in range(rows):
        alone = session.run(names, {key: value[[row]] for key, value in model.inputs.items()})
        for answer, whole, expected in zip(alone, together, model.expected.values(), strict=True):
            assert_same(answer, expected[[row]])
            assert_same(whole[[row]], expected[[row]])
    answers = dict(zip(names, together, strict=True))
    figures = f"{model.train_rows} | {rows} | {model.measure} | {model.score(answers):.4f}"
    return f"| `{model.proto.graph.name}` | {figures} | {len(data)} |\n"


def assert_same(actual: Array, expected: Array) -> None:
    """Raise unless strings are equal and numbers close."""
    if actual.dtype == np.float32:
        np.testing.assert_allclose(actual.astype(float), expected.astype(float), atol=TOLERANCE)
    else:
        np.testing.assert_array_equal(actual, expected)


def update_readme(table: str) -> None:
    """Replace the table between the markers; a README without them is an error."""
    readme = MODELS / "README.md"
    before, begin, rest = readme.read_text(encoding="utf-8").partition(TABLE_BEGIN)
    _, end, after = rest.partition(TABLE_END)
    if not (begin and end):
        raise ValueError(f"README.md lacks {TABLE_BEGIN!r} or {TABLE_END!r}")
    readme.write_text(f"{before}{begin}{table}{end}{after}", encoding="utf-8", newline="\n")


def main() -> None:
    """Train and check every model, and only then write."""
    with threadpool_limits(limits=1):  # sums in a fixed order: the same bytes on every run
        trained = [train_digits(), train_wine(), train_iris_petals()]
    files = [model.proto.SerializeToString(deterministic=True) for model in trained]
    table = TABLE_HEAD + "".join(map(check, trained, files))
    sums = ""
    for model, data in zip(trained, files, strict=True):
        path = MODELS / model.proto.graph.name / "1" / "model.onnx"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        sums += f"{hashlib.sha256(data).hexdigest()}  {path.relative_to(MODELS).as_posix()}\n"
    (MODELS / "SHA256SUMS").write_text(sums, encoding="utf-8", newline="\n")
    update_readme(table)
    print(table, end="")


if __name__ == "__main__":
    main()
