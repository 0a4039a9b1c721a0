"""tritonclient over HTTP: `python tritonclient_http.py sync|asyncio HOST:PORT`, the same checks for both."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import ml_dtypes
import numpy as np
import tritonclient.http
import tritonclient.http.aio
from reporting import Awaited, equal, refused, report_coroutines
from tritonclient.http import InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException
from values import EDGES, ODD_NAME, assert_same, stripes, texts

MIXES = [(given, asked) for given in (True, False) for asked in (True, False, None)]


def given(name: str, values: np.ndarray, datatype: str, *, binary: bool = True) -> InferInput:
    entry = InferInput(name, list(values.shape), datatype)
    entry.set_data_from_numpy(values, binary_data=binary)
    return entry


def image(values: np.ndarray, *, binary: bool = True) -> list[InferInput]:
    return [given("image", values, "FP32", binary=binary)]


def numbers(*values: float) -> list[InferInput]:
    return [given("x", np.array(values, np.float32), "FP32")]


def answered(result: Any) -> list[str]:
    """Returns the names of the outputs in the order in which they came."""
    return [output["name"] for output in result.get_response()["outputs"]]


# --- what the server and its models are --------------------------------------------------------------------


async def check_server_is_live_and_ready(client: Any) -> None:
    equal(await client.is_server_live(), True)
    equal(await client.is_server_ready(), True)


async def check_model_readiness(client: Any) -> None:
    asked = [("digits", ""), ("digits", "1"), ("digits", "9"), ("nothing", "")]
    found = [await client.is_model_ready(name, version) for name, version in asked]
    equal(found, [True, True, False, False])


async def check_server_metadata(client: Any) -> None:
    metadata = await client.get_server_metadata()
    equal(metadata["name"], "modelhost")
    equal({"binary_tensor_data", "model_repository", "model_configuration"} - set(metadata["extensions"]), set())


async def check_model_metadata(client: Any) -> None:
    metadata = await client.get_model_metadata("versions")
    equal((metadata["name"], metadata["versions"]), ("versions", ["1", "2"]))
    equal(metadata["inputs"], [{"name": "x", "datatype": "FP32", "shape": [-1]}])
    wine = await client.get_model_metadata("wine", "1")
    equal({output["name"]: output["datatype"] for output in wine["outputs"]}["label"], "BYTES")


async def check_model_config(client: Any) -> None:
    config = await client.get_model_config("digits")
    equal((config["name"], config["platform"], config["max_batch_size"]), ("digits", "onnxruntime_onnx", 0))
    equal([(entry["name"], entry["data_type"]) for entry in config["input"]], [("image", "TYPE_FP32")])
    equal((await client.get_model_config("versions", "1"))["output"][0]["dims"], [-1])


async def check_statistics(client: Any) -> None:
    async def successes() -> dict[str, int]:
        entries = (await client.get_inference_statistics("versions"))["model_stats"]
        return {entry["version"]: entry["inference_stats"]["success"]["count"] for entry in entries}

    assert "statistics" in (await client.get_server_metadata())["extensions"]
    before = await successes()
    equal(sorted(before), ["1", "2"])
    for value in range(3):
        await client.infer("versions", numbers(value), model_version="1")
    equal(await successes(), {"1": before["1"] + 3, "2": before["2"]})
    (entry,) = (await client.get_inference_statistics("versions", "1"))["model_stats"]
    assert entry["inference_count"] >= 3, entry
    assert entry["execution_count"] >= 1, entry
    assert abs(entry["last_inference"] - time.time() * 1000) < 60_000, entry
    sections = {
        "success",
        "fail",
        "queue",
        "compute_input",
        "compute_infer",
        "compute_output",
        "cache_hit",
        "cache_miss",
    }
    equal(entry["inference_stats"].keys(), sections)
    assert all(took.keys() == {"count", "ns"} for took in entry["inference_stats"].values()), entry
    assert entry["inference_stats"]["compute_infer"]["ns"] > 0, entry
    # A tiny model may lie in memory that the host had already: 0 is a measurement.
    assert entry["memory_usage"][0]["byte_size"] >= 0, entry
    everything = (await client.get_inference_statistics())["model_stats"]
    assert ("versions", "1") in {(model["name"], model["version"]) for model in everything}, everything
    with refused(InferenceServerException, "no model 'nothing'"):
        await client.get_inference_statistics("nothing")


# --- inference ---------------------------------------------------------------------------------------------


async def check_infer_in_each_mix_of_json_and_binary(client: Any) -> None:
    expected = (await client.infer("digits", image(stripes()))).as_numpy("logits")
    equal((expected.shape, expected.dtype), ((3, 10), np.dtype(np.float32)))
    for binary_in, binary_out in MIXES:
        outputs = None if binary_out is None else [InferRequestedOutput("logits", binary_data=binary_out)]
        result = await client.infer("digits", image(stripes(), binary=binary_in), outputs=outputs)
        assert_same(result.as_numpy("logits"), expected)
        equal("data" in result.get_output("logits"), binary_out is False)


async def check_json_and_binary_outputs_in_one_answer(client: Any) -> None:
    rows = [given("measurements", np.ones((2, 13), np.float32), "FP32")]
    for is_binary in (True, False):
        outputs = [
            InferRequestedOutput("label", binary_data=not is_binary),
            InferRequestedOutput("probabilities", binary_data=is_binary),
        ]
        result = await client.infer("wine", rows, outputs=outputs)
        equal("data" in result.get_output("label"), is_binary)
        equal("data" in result.get_output("probabilities"), not is_binary)
        equal([text[:6] for text in texts(result.as_numpy("label"))], ["class_", "class_"])
        equal(result.as_numpy("probabilities").shape, (2, 3))


async def check_outputs_come_in_the_order_asked(client: Any) -> None:
    rows = [given("measurements", np.ones((1, 13), np.float32), "FP32")]
    for names in (["label", "probabilities"], ["probabilities", "label"], ["probabilities"], ["label"]):
        outputs = [InferRequestedOutput(name, binary_data=False) for name in names]
        equal(answered(await client.infer("wine", rows, outputs=outputs)), names)
    names = [f"same_{name}" for name in ("fp64", "bytes", "bool", "fp16")]
    result = await client.infer("every_type", edges(), outputs=[InferRequestedOutput(name) for name in names])
    equal(answered(result), names)
    for name in names:
        assert_same(result.as_numpy(name), EDGES[name.removeprefix("same_")])


async def check_texts_in_and_out(client: Any) -> None:
    species = np.array([["setosa"], ["virginica"], ["größe"]], np.object_)
    petals = []
    for binary in (True, False):
        inputs = [
            given("species", species, "BYTES", binary=binary),
            given("sepal", np.ones((3, 2), np.float32), "FP32", binary=not binary),
        ]
        petals.append((await client.infer("iris_petals", inputs)).as_numpy("petal"))
    equal(petals[0].shape, (3, 2))
    assert_same(petals[0], petals[1])
    assert (petals[0][0] != petals[0][1]).all(), petals


def edges(*, binary: bool = True) -> list[InferInput]:
    return [given(name, values, name.upper(), binary=binary or name == "fp16") for name, values in EDGES.items()]


async def check_each_datatype_in_binary(client: Any) -> None:
    result = await client.infer("every_type", edges())
    for name, values in EDGES.items():
        assert_same(result.as_numpy(f"same_{name}"), values)


async def check_each_datatype_in_json(client: Any) -> None:
    outputs = [InferRequestedOutput(f"same_{name}", binary_data=name == "fp16") for name in EDGES]
    result = await client.infer("every_type", edges(binary=False), outputs=outputs)
    for name, values in EDGES.items():
        assert_same(result.as_numpy(f"same_{name}"), values)


async def check_bf16(client: Any) -> None:
    values = np.array([1, -3.5, 1e38], ml_dtypes.bfloat16)
    assert_same((await client.infer("bf16", [given("x", values, "BF16")])).as_numpy("y"), values)
    equal((await client.get_model_metadata("bf16"))["inputs"][0]["datatype"], "BF16")


async def check_empty_tensors(client: Any) -> None:
    for binary in (True, False):
        is_binary = {name: binary or name == "fp16" for name in EDGES}
        inputs = [given(name, EDGES[name][:0], name.upper(), binary=is_binary[name]) for name in EDGES]
        outputs = [InferRequestedOutput(f"same_{name}", binary_data=is_binary[name]) for name in EDGES]
        result = await client.infer("every_type", inputs, outputs=outputs)
        for name in EDGES:
            equal(result.get_output(f"same_{name}")["shape"], [0])


async def check_scalars(client: Any) -> None:
    for binary_in, binary_out in MIXES:
        outputs = None if binary_out is None else [InferRequestedOutput("y", binary_data=binary_out)]
        values = [given("x", np.array(2.5, np.float32), "FP32", binary=binary_in)]
        found = (await client.infer("scalar", values, outputs=outputs)).as_numpy("y")
        assert_same(found, np.array(2.5, np.float32))


async def check_tensors_of_some_megabytes(client: Any) -> None:
    values = np.arange(1_500_000, dtype=np.float32)
    result = await client.infer("versions", [given("x", values, "FP32")])
    assert_same(result.as_numpy("y"), values + 2)


async def check_versions(client: Any) -> None:
    found = {}
    for version in ("", "1", "2"):
        result = await client.infer("versions", numbers(10), model_version=version)
        found[version] = (float(result.as_numpy("y")[0]), result.get_response()["model_version"])
    equal(found, {"": (12.0, "2"), "1": (11.0, "1"), "2": (12.0, "2")})


async def check_request_ids_come_back(client: Any) -> None:
    for name in ("q-1", "größe 7"):
        equal((await client.infer("versions", numbers(1), request_id=name)).get_response()["id"], name)
    assert not (await client.infer("versions", numbers(1))).get_response().get("id"), "an id that nobody gave"


async def check_names_that_need_percent_encoding(client: Any) -> None:
    equal(await client.is_model_ready(ODD_NAME), True)
    equal((await client.get_model_metadata(ODD_NAME))["name"], ODD_NAME)
    equal((await client.get_model_config(ODD_NAME, "1"))["name"], ODD_NAME)
    result = await client.infer(ODD_NAME, numbers(1), model_version="1")
    equal((result.get_response()["model_name"], float(result.as_numpy("y")[0])), (ODD_NAME, 5.0))
    await client.unload_model(ODD_NAME)
    await client.load_model(ODD_NAME)
    equal({entry["name"] for entry in await client.get_model_repository_index()} >= {ODD_NAME}, True)
    with refused(InferenceServerException, "grün & rot 50%"):
        await client.infer("grün & rot 50%", numbers(1))


# --- compression -------------------------------------------------------------------------------------------


async def check_compression_in_each_direction(client: Any) -> None:
    expected = (await client.infer("digits", image(stripes(64)))).as_numpy("logits")
    for request in (None, "gzip", "deflate"):
        for response in (None, "gzip", "deflate"):
            for binary in (True, False):
                result = await client.infer(
                    "digits",
                    image(stripes(64), binary=binary),
                    outputs=[InferRequestedOutput("logits", binary_data=binary)],
                    request_compression_algorithm=request,
                    response_compression_algorithm=response,
                )
                assert_same(result.as_numpy("logits"), expected)


async def check_errors_are_readable_where_compression_was_asked_for(client: Any) -> None:
    for algorithm in ("gzip", "deflate"):
        with refused(InferenceServerException, "no model 'nothing'"):
            await client.infer("nothing", numbers(1), response_compression_algorithm=algorithm)


# --- parameters --------------------------------------------------------------------------------------------


async def check_timeouts_are_kept(client: Any) -> None:
    equal(float((await client.infer("versions", numbers(1), timeout=20_000_000)).as_numpy("y")[0]), 3.0)
    await client.unload_model("passing")
    with refused(InferenceServerException, "passing:1 did not finish within"):  # no load takes a microsecond
        await client.infer("passing", numbers(1), timeout=1)
    equal(float((await client.infer("passing", numbers(1))).as_numpy("y")[0]), 4.0)


async def check_parameters_that_mean_nothing_here_do_no_harm(client: Any) -> None:
    result = await client.infer(
        "versions", numbers(1), priority=1, sequence_id=7, sequence_start=True, parameters={"mine": "x", "n": 3}
    )
    equal(float(result.as_numpy("y")[0]), 3.0)


async def check_what_is_not_served_is_refused_in_words(client: Any) -> None:
    with refused(InferenceServerException, "v2/systemsharedmemory/status"):
        await client.get_system_shared_memory_status()
    with refused(InferenceServerException, "v2/trace/setting"):
        await client.get_trace_settings()
    with refused(InferenceServerException, "classification"):
        await client.infer("digits", image(stripes()), outputs=[InferRequestedOutput("logits", class_count=3)])
    shared = InferInput("image", [1, 1, 8, 8], "FP32")
    shared.set_shared_memory("region", 256)
    with refused(InferenceServerException, "shared_memory_region"):
        await client.infer("digits", [shared])


# --- errors ------------------------------------------------------------------------------------------------


async def check_errors_carry_our_text(client: Any) -> None:
    images = np.zeros((1, 1, 8, 9), np.float32)
    with refused(InferenceServerException, r"tensor 'image': expected FP32 \[batch,1,8,8\], got shape"):
        await client.infer("digits", image(images))
    with refused(InferenceServerException, "tensor 'image': expected datatype FP32, got FP64"):
        await client.infer("digits", [given("image", np.zeros((1, 1, 8, 8)), "FP64")])
    with refused(InferenceServerException, "no model 'digit'; did you mean 'digits'"):
        await client.infer("digit", image(images))
    with refused(InferenceServerException, "version"):
        await client.infer("digits", image(stripes()), model_version="9")
    with refused(InferenceServerException, "'pictures'"):
        await client.infer("digits", [given("pictures", stripes(), "FP32")])
    with refused(InferenceServerException, "'species'"):
        await client.infer("iris_petals", [given("sepal", np.ones((1, 2), np.float32), "FP32")])
    with refused(InferenceServerException, "'logit'"):
        await client.infer("digits", image(stripes()), outputs=[InferRequestedOutput("logit")])
    for ask in (client.get_model_metadata, client.get_model_config, client.load_model, client.unload_model):
        with refused(InferenceServerException, "no model 'nothing'"):
            await ask("nothing")


async def check_texts_that_are_not_utf8_are_refused(client: Any) -> None:
    inputs = [
        given("species", np.array([[b"\xff\xfe"]], np.object_), "BYTES"),
        given("sepal", np.ones((1, 2), np.float32), "FP32"),
    ]
    with refused(InferenceServerException, "(?i)tensor 'species'.*UTF-8"):
        await client.infer("iris_petals", inputs)


# --- repository --------------------------------------------------------------------------------------------


async def check_models_are_loaded_and_unloaded(client: Any) -> None:
    async def state() -> tuple[str, str, str]:
        index = await client.get_model_repository_index()
        return next((e["version"], e["state"], e["reason"]) for e in index if e["name"] == "passing")

    await client.load_model("passing")
    equal(await state(), ("1", "READY", ""))
    await client.unload_model("passing")
    equal(await state(), ("1", "UNAVAILABLE", "unloaded"))
    equal(await client.is_model_ready("passing"), False)
    await client.load_model("passing")
    equal(await client.is_model_ready("passing"), True)
    with refused(InferenceServerException, "load parameter 'config' is not supported"):
        await client.load_model("passing", config="{}")
    with refused(InferenceServerException, "load parameter '(config|file:1/model.onnx)' is not supported"):
        await client.load_model("passing", config="{}", files={"file:1/model.onnx": b"onnx"})


async def main(face: str, address: str) -> None:
    if face == "asyncio":
        async with tritonclient.http.aio.InferenceServerClient(address) as client:
            await report_coroutines(globals(), client)
    else:
        with tritonclient.http.InferenceServerClient(address) as blocking:
            await report_coroutines(globals(), Awaited(blocking))


asyncio.run(main(*sys.argv[1:]))
