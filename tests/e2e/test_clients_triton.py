"""tritonclient, the client that most users have, against a real process with the shipped models."""

from __future__ import annotations

import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tritonclient.http as triton
from host_process import MODELS, HostProcess
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_iris, load_wine
from sklearn.metrics import r2_score
from sklearn.model_selection import train_test_split
from tritonclient.utils import InferenceServerException


@pytest.fixture
def client(host_process: HostProcess) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(host_process.address, concurrency=4) as client:
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


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests_give_the_same_answer(client: triton.InferenceServerClient, algorithm: str) -> None:
    images, _ = digit_images()
    inputs = [given("image", images[:20], "FP32", binary=True)]
    expected = client.infer("digits", inputs).as_numpy("logits")
    answer = client.infer(
        "digits", inputs, request_compression_algorithm=algorithm, response_compression_algorithm=algorithm
    )
    assert np.array_equal(answer.as_numpy("logits"), expected)


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


def test_the_server_says_what_clients_ask_before_they_send(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("digits")
    assert client.is_model_ready("digits", "1")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "modelhost"
    metadata = client.get_model_metadata("digits")
    assert metadata["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8]}]
    assert client.get_model_config("digits", "1")["input"][0]["data_type"] == "TYPE_FP32"


def test_models_are_loaded_and_unloaded_through_the_repository_extension(
    client: triton.InferenceServerClient,
) -> None:
    def state() -> tuple[str, str]:
        index = client.get_model_repository_index()
        return next((entry["state"], entry["reason"]) for entry in index if entry["name"] == "wine")

    client.load_model("wine")
    assert state() == ("READY", "")
    client.unload_model("wine")
    assert state() == ("UNAVAILABLE", "unloaded")
    assert not client.is_model_ready("wine")
    client.load_model("wine")
    assert client.is_model_ready("wine")


def test_errors_arrive_as_the_clients_exception_with_our_text(client: triton.InferenceServerClient) -> None:
    images = np.zeros((1, 1, 8, 9), np.float32)
    with pytest.raises(InferenceServerException, match=r"tensor 'image': expected FP32 \[batch,1,8,8\], got shape"):
        client.infer("digits", [given("image", images, "FP32", binary=True)])
    with pytest.raises(InferenceServerException, match="no model 'digit'; did you mean 'digits'"):
        client.infer("digit", [given("image", images, "FP32", binary=True)])
    with pytest.raises(InferenceServerException, match="no model 'nothing'"):
        client.load_model("nothing")
    with pytest.raises(InferenceServerException, match="load parameter 'config' is not supported"):
        client.load_model("digits", config="{}")


def test_request_ids_and_timeouts_are_understood(client: triton.InferenceServerClient) -> None:
    inputs = [given("image", np.zeros((1, 1, 8, 8), np.float32), "FP32", binary=True)]
    answer = client.infer("digits", inputs, request_id="q-1", timeout=5_000_000, model_version="1")
    assert answer.get_response()["id"] == "q-1"


def test_asynchronous_requests_are_answered(client: triton.InferenceServerClient) -> None:
    images, target = digit_images()
    client.infer("digits", [given("image", images[:1], "FP32", binary=True)])
    pending = [
        client.async_infer("digits", [given("image", images[row : row + 1], "FP32", binary=True)]) for row in range(40)
    ]
    found = [answer.get_result().as_numpy("logits").argmax() for answer in pending]
    assert np.mean(found == target[:40]) > 0.9


def test_many_clients_at_once_each_get_their_own_answer(host_process: HostProcess) -> None:
    images, _ = digit_images()

    def ask(worker: int) -> bool:
        with triton.InferenceServerClient(host_process.address) as own:
            rows = images[worker * 20 : worker * 20 + 20]
            together = own.infer("digits", [given("image", rows, "FP32", binary=True)]).as_numpy("logits")
            single = [
                own.infer("digits", [given("image", rows[i : i + 1], "FP32", binary=i % 2 == 0)]).as_numpy("logits")[0]
                for i in range(20)
            ]
        return np.allclose(together, single, atol=1e-4)

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(ask, range(8)))
