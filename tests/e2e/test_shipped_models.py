"""The shipped models behind a real process answer as well as their README says, whatever form the tensors take."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pytest
import tritonclient.http as triton
from host_process import MODELS, HostProcess
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split


@pytest.fixture
def client(host_process: HostProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(host_process.address) as client:
        yield client


def figure(model: str) -> float:
    """What models/README.md says of the model on held-out rows."""
    match = re.search(rf"^\| `{model}` \| \d+ \| \d+ \| [^|]+ \| ([\d.]+) \|", (MODELS / "README.md").read_text(), re.M)
    assert match is not None
    return float(match[1])


def held_out(values: NDArray, target: NDArray) -> list[NDArray]:
    """The rows that models/README.md says were not trained on, and their targets."""
    rows = np.arange(len(target))
    return train_test_split(values, target, rows, test_size=0.25, random_state=0, stratify=target)[1::2]


def given(name: str, values: NDArray, datatype: str, *, binary: bool) -> triton.InferInput:
    entry = triton.InferInput(name, list(values.shape), datatype)
    entry.set_data_from_numpy(values, binary_data=binary)
    return entry


def digit_images() -> tuple[NDArray, NDArray]:
    data = load_digits()
    images, target, _ = held_out(data.images, data.target)
    return images.astype(np.float32)[:, None], target


@pytest.mark.parametrize("binary_out", [True, False, None])
@pytest.mark.parametrize("binary_in", [True, False])
def test_digits_are_recognised_as_well_as_the_readme_says(
    client: triton.InferenceServerClient, binary_in: bool, binary_out: bool | None
) -> None:
    images, target = digit_images()
    outputs = None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer("digits", [given("image", images, "FP32", binary=binary_in)], outputs=outputs)
    assert round(float((result.as_numpy("logits").argmax(1) == target).mean()), 4) == figure("digits")


@pytest.mark.parametrize("binary", [True, False])
def test_wines_get_their_labels_as_text(client: triton.InferenceServerClient, binary: bool) -> None:
    data = load_wine()
    rows, target, _ = held_out(data.data.astype(np.float32), data.target)
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in ("label", "probabilities")]
    result = client.infer("wine", [given("measurements", rows, "FP32", binary=binary)], outputs=outputs)
    # tritonclient gives binary texts as bytes and JSON's as str.
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("label")]
    accuracy = np.mean([label == f"class_{number}" for label, number in zip(labels, target, strict=True)])
    assert round(float(accuracy), 4) == figure("wine")
    assert np.allclose(result.as_numpy("probabilities").sum(1), 1, atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_petals_are_guessed_from_species_as_text(client: triton.InferenceServerClient, binary: bool) -> None:
    data = load_iris()
    flowers, target, _ = held_out(data.data.astype(np.float32), data.target)
    species = np.array([[data.target_names[number]] for number in target], np.object_)
    inputs = [
        given("species", species, "BYTES", binary=binary),
        given("sepal", flowers[:, :2].copy(), "FP32", binary=binary),
    ]
    petals = client.infer("iris_petals", inputs).as_numpy("petal")
    assert round(r2_score(flowers[:, 2:], petals), 4) == figure("iris_petals")
