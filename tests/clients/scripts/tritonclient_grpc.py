"""tritonclient over gRPC: `python tritonclient_grpc.py sync|asyncio HOST:PORT`, the same checks for both."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.grpc
import tritonclient.grpc.aio
from reporting import Awaited, equal, refused, report_coroutines
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException
from values import EDGES, ODD_NAME, assert_same, stripes, texts


def given(name: str, values: np.ndarray, datatype: str) -> InferInput:
    entry = InferInput(name, list(values.shape), datatype)
    entry.set_data_from_numpy(values)
    return entry


def numbers(*values: float) -> list[InferInput]:
    return [given("x", np.array(values, np.float32), "FP32")]


def answered(result: Any) -> list[str]:
    """Returns the names of the outputs in the order in which they came."""
    return [output.name for output in result.get_response().outputs]


def coded(code: str, text: str) -> str:
    """Returns the pattern of an error with gRPC's status `code` and our text."""
    return rf"\[StatusCode\.{code}\] .*{text}"


# --- what the server and its models are --------------------------------------------------------------------


async def check_server_is_live_and_ready(client: Any) -> None:
    equal(await client.is_server_live(), True)
    equal(await client.is_server_ready(), True)


async def check_model_readiness(client: Any) -> None:
    equal([await client.is_model_ready("digits", version) for version in ("", "1")], [True, True])
    with refused(InferenceServerException, coded("NOT_FOUND", "no model 'nothing'")):
        await client.is_model_ready("nothing")


async def check_server_metadata(client: Any) -> None:
    metadata = await client.get_server_metadata()
    equal(metadata.name, "modelhost")
    equal({"model_repository", "model_configuration", "statistics"} - set(metadata.extensions), set())
    equal((await client.get_server_metadata(as_json=True))["version"], metadata.version)


async def check_model_metadata(client: Any) -> None:
    metadata = await client.get_model_metadata("versions", as_json=True)
    equal((metadata["name"], metadata["versions"]), ("versions", ["1", "2"]))
    equal(metadata["inputs"], [{"name": "x", "datatype": "FP32", "shape": ["-1"]}])
    wine = await client.get_model_metadata("wine", "1")
    equal({output.name: output.datatype for output in wine.outputs}["label"], "BYTES")


async def check_model_config(client: Any) -> None:
    config = (await client.get_model_config("digits")).config
    equal((config.name, config.platform, config.max_batch_size), ("digits", "onnxruntime_onnx", 0))
    equal([(entry.name, list(entry.dims)) for entry in config.input], [("image", [-1, 1, 8, 8])])
    shown = (await client.get_model_config("wine", "1", as_json=True))["config"]
    equal({entry["name"]: entry["data_type"] for entry in shown["output"]}["label"], "TYPE_STRING")


async def check_statistics(client: Any) -> None:
    async def successes() -> dict[str, int]:
        answer = await client.get_inference_statistics("versions")
        return {entry.version: entry.inference_stats.success.count for entry in answer.model_stats}

    before = await successes()
    equal(sorted(before), ["1", "2"])
    for value in range(3):
        await client.infer("versions", numbers(value), model_version="1")
    equal(await successes(), {"1": before["1"] + 3, "2": before["2"]})
    (entry,) = (await client.get_inference_statistics("versions", "1")).model_stats
    equal((entry.name, entry.version, entry.inference_stats.compute_infer.ns > 0), ("versions", "1", True))
    assert entry.inference_count >= 3 <= entry.inference_stats.success.count, entry
    everything = await client.get_inference_statistics(as_json=True)
    assert "versions" in {model["name"] for model in everything["model_stats"]}, everything
    with refused(InferenceServerException, coded("NOT_FOUND", "no model 'nothing'")):
        await client.get_inference_statistics("nothing")


# --- inference ---------------------------------------------------------------------------------------------


async def check_infer_with_and_without_outputs_named(client: Any) -> None:
    images = [given("image", stripes(), "FP32")]
    expected = (await client.infer("digits", images)).as_numpy("logits")
    equal((expected.shape, expected.dtype), ((3, 10), np.dtype(np.float32)))
    assert_same(
        (await client.infer("digits", images, outputs=[InferRequestedOutput("logits")])).as_numpy("logits"), expected
    )


async def check_outputs_come_in_the_order_asked(client: Any) -> None:
    rows = [given("measurements", np.ones((1, 13), np.float32), "FP32")]
    for names in (["label", "probabilities"], ["probabilities", "label"], ["probabilities"], ["label"]):
        result = await client.infer("wine", rows, outputs=[InferRequestedOutput(name) for name in names])
        equal(answered(result), names)
        if "label" in names:
            equal(texts(result.as_numpy("label"))[0][:6], "class_")
        if "probabilities" in names:
            equal(result.as_numpy("probabilities").shape, (1, 3))


async def check_texts_in_and_out(client: Any) -> None:
    species = np.array([["setosa"], ["virginica"], ["größe"]], np.object_)
    inputs = [given("species", species, "BYTES"), given("sepal", np.ones((3, 2), np.float32), "FP32")]
    petal = (await client.infer("iris_petals", inputs)).as_numpy("petal")
    equal(petal.shape, (3, 2))
    assert (petal[0] != petal[1]).all(), petal


async def check_each_datatype(client: Any) -> None:
    inputs = [given(name, values, name.upper()) for name, values in EDGES.items()]
    result = await client.infer("every_type", inputs)
    for name, values in EDGES.items():
        assert_same(result.as_numpy(f"same_{name}"), values)


async def check_bf16(client: Any) -> None:
    values = np.array([1, -3.5, 1e38], ml_dtypes.bfloat16)
    assert_same((await client.infer("bf16", [given("x", values, "BF16")])).as_numpy("y"), values)
    equal((await client.get_model_metadata("bf16", as_json=True))["inputs"][0]["datatype"], "BF16")


async def check_empty_tensors(client: Any) -> None:
    result = await client.infer("every_type", [given(name, values[:0], name.upper()) for name, values in EDGES.items()])
    equal([list(output.shape) for output in result.get_response().outputs], [[0]] * len(EDGES))
    equal({result.as_numpy(f"same_{name}").size for name in EDGES}, {0})


async def check_scalars(client: Any) -> None:
    found = (await client.infer("scalar", [given("x", np.array(2.5, np.float32), "FP32")])).as_numpy("y")
    assert_same(found, np.array(2.5, np.float32))


async def check_tensors_of_some_megabytes(client: Any) -> None:
    values = np.arange(1_500_000, dtype=np.float32)  # more than the 4 MB that gRPC takes when nobody says more
    result = await client.infer("versions", [given("x", values, "FP32")])
    assert_same(result.as_numpy("y"), values + 2)


async def check_versions(client: Any) -> None:
    found = {}
    for version in ("", "1", "2"):
        result = await client.infer("versions", numbers(10), model_version=version)
        found[version] = (float(result.as_numpy("y")[0]), result.get_response().model_version)
    equal(found, {"": (12.0, "2"), "1": (11.0, "1"), "2": (12.0, "2")})


async def check_request_ids_come_back(client: Any) -> None:
    for name in ("q-1", "größe 7", ""):
        equal((await client.infer("versions", numbers(1), request_id=name)).get_response().id, name)


async def check_names_beyond_ascii(client: Any) -> None:
    equal(await client.is_model_ready(ODD_NAME), True)
    equal((await client.get_model_metadata(ODD_NAME)).name, ODD_NAME)
    result = await client.infer(ODD_NAME, numbers(1), model_version="1")
    equal((result.get_response().model_name, float(result.as_numpy("y")[0])), (ODD_NAME, 5.0))
    with refused(InferenceServerException, coded("NOT_FOUND", "grün & rot")):
        await client.infer("grün & rot 50%", numbers(1))


async def check_compression(client: Any) -> None:
    images = [given("image", stripes(64), "FP32")]
    expected = (await client.infer("digits", images)).as_numpy("logits")
    for algorithm in ("gzip", "deflate"):
        result = await client.infer("digits", images, compression_algorithm=algorithm)
        assert_same(result.as_numpy("logits"), expected)


# --- parameters and errors ---------------------------------------------------------------------------------


async def check_timeouts_are_kept(client: Any) -> None:
    result = await client.infer("versions", numbers(1), timeout=20_000_000, client_timeout=20)
    equal(float(result.as_numpy("y")[0]), 3.0)
    await client.unload_model("passing")
    with refused(InferenceServerException, coded("DEADLINE_EXCEEDED", "passing:1 did not finish within")):
        await client.infer("passing", numbers(1), timeout=1)
    with refused(InferenceServerException, "(?i)deadline"):
        await client.infer("passing", numbers(1), client_timeout=1e-6)
    equal(float((await client.infer("passing", numbers(1))).as_numpy("y")[0]), 4.0)


async def check_parameters_that_mean_nothing_here_do_no_harm(client: Any) -> None:
    result = await client.infer(
        "versions", numbers(1), priority=1, sequence_id=7, sequence_start=True, parameters={"mine": "x", "n": 3}
    )
    equal(float(result.as_numpy("y")[0]), 3.0)


async def check_what_is_not_served_is_refused_in_words(client: Any) -> None:
    for ask in (client.get_system_shared_memory_status, client.get_trace_settings):
        with refused(InferenceServerException, coded("UNIMPLEMENTED", "this server")):
            await ask()
    images = [given("image", stripes(), "FP32")]
    with refused(InferenceServerException, coded("INVALID_ARGUMENT", "classification")):
        await client.infer("digits", images, outputs=[InferRequestedOutput("logits", class_count=3)])
    shared = InferInput("image", [1, 1, 8, 8], "FP32")
    shared.set_shared_memory("region", 256)
    with refused(InferenceServerException, coded("INVALID_ARGUMENT", "shared_memory_region")):
        await client.infer("digits", [shared])


async def check_errors_carry_our_text(client: Any) -> None:
    images = [given("image", np.zeros((1, 1, 8, 9), np.float32), "FP32")]
    with refused(InferenceServerException, coded("INVALID_ARGUMENT", r"tensor 'image': expected FP32 \[batch,1,8,8\]")):
        await client.infer("digits", images)
    with refused(
        InferenceServerException, coded("INVALID_ARGUMENT", "tensor 'image': expected datatype FP32, got FP64")
    ):
        await client.infer("digits", [given("image", np.zeros((1, 1, 8, 8)), "FP64")])
    with refused(InferenceServerException, coded("NOT_FOUND", "no model 'digit'; did you mean 'digits'")):
        await client.infer("digit", images)
    with refused(InferenceServerException, coded("NOT_FOUND", "version")):
        await client.infer("digits", images, model_version="9")
    with refused(InferenceServerException, coded("INVALID_ARGUMENT", "'species'")):
        await client.infer("iris_petals", [given("sepal", np.ones((1, 2), np.float32), "FP32")])
    with refused(InferenceServerException, coded("INVALID_ARGUMENT", "'logit'")):
        good = [given("image", stripes(), "FP32")]
        await client.infer("digits", good, outputs=[InferRequestedOutput("logit")])
    for ask in (client.get_model_metadata, client.get_model_config, client.load_model, client.unload_model):
        with refused(InferenceServerException, coded("NOT_FOUND", "no model 'nothing'")):
            await ask("nothing")


async def check_texts_that_are_not_utf8_are_refused(client: Any) -> None:
    inputs = [
        given("species", np.array([[b"\xff\xfe"]], np.object_), "BYTES"),
        given("sepal", np.ones((1, 2), np.float32), "FP32"),
    ]
    with refused(InferenceServerException, coded("INVALID_ARGUMENT", "tensor 'species'.*UTF-8")):
        await client.infer("iris_petals", inputs)


# --- repository --------------------------------------------------------------------------------------------


async def check_models_are_loaded_and_unloaded(client: Any) -> None:
    async def state() -> tuple[str, str, str]:
        index = (await client.get_model_repository_index()).models
        return next((e.version, e.state, e.reason) for e in index if e.name == "passing")

    await client.load_model("passing")
    equal(await state(), ("1", "READY", ""))
    await client.unload_model("passing")
    equal(await state(), ("1", "UNAVAILABLE", "unloaded"))
    equal(await client.is_model_ready("passing"), False)
    await client.load_model("passing")
    equal(await client.is_model_ready("passing"), True)
    with refused(InferenceServerException, coded("INVALID_ARGUMENT", "load parameter 'config' is not supported")):
        await client.load_model("passing", config="{}")


async def main(face: str, address: str) -> None:
    if face == "asyncio":
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            await report_coroutines(globals(), client)
    else:
        with tritonclient.grpc.InferenceServerClient(address) as blocking:
            await report_coroutines(globals(), Awaited(blocking))


asyncio.run(main(*sys.argv[1:]))
