"""The KServe SDK's REST client with the V2 protocol: `python kserve_rest.py HOST:PORT`."""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import quote

import httpx
import numpy as np
from kserve import InferenceRESTClient, InferInput, InferRequest, InferResponse
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import RequestedOutput
from reporting import equal, refused, report_coroutines
from values import EDGES, ODD_NAME, assert_same, stripes, texts


def given(name: str, values: np.ndarray, datatype: str, *, binary: bool = True) -> InferInput:
    entry = InferInput(name, list(values.shape), datatype)
    entry.set_data_from_numpy(values, binary_data=binary)
    return entry


def asking(model: str, inputs: list[InferInput], **outputs: bool) -> InferRequest:
    """Asks for `outputs`, by name: whether in binary."""
    wanted = [RequestedOutput(name, {"binary_data": is_binary}) for name, is_binary in outputs.items()]
    return InferRequest(model, inputs, request_outputs=wanted)


async def logits(client: InferenceRESTClient, url: str, request: InferRequest) -> np.ndarray:
    answer = await client.infer(url, request, model_name="digits")
    assert isinstance(answer, InferResponse)
    return answer.get_output_by_name("logits").as_numpy()


async def check_server_is_live_and_ready(client: InferenceRESTClient, url: str) -> None:
    equal(await client.is_server_live(url), True)
    equal(await client.is_server_ready(url), True)


async def check_model_readiness(client: InferenceRESTClient, url: str) -> None:
    found = [await client.is_model_ready(url, name) for name in ("digits", "wine", "nothing")]
    equal(found, [True, True, False])


async def check_names_that_need_percent_encoding(client: InferenceRESTClient, url: str) -> None:
    name = quote(ODD_NAME)  # the SDK leaves that to its user
    equal(await client.is_model_ready(url, name), True)
    request = asking(ODD_NAME, [given("x", np.ones(1, np.float32), "FP32")])
    equal((await client.infer(url, request, model_name=name)).model_name, ODD_NAME)


async def check_infer_in_json_and_in_binary(client: InferenceRESTClient, url: str) -> None:
    found = [
        await logits(
            client, url, asking("digits", [given("image", stripes(), "FP32", binary=binary)], logits=is_binary)
        )
        for binary in (True, False)
        for is_binary in (True, False)
    ]
    equal(found[0].shape, (3, 10))
    for other in found[1:]:
        assert_same(other, found[0])


async def check_infer_without_outputs_named(client: InferenceRESTClient, url: str) -> None:
    binary = await logits(client, url, asking("digits", [given("image", stripes(), "FP32")]))
    entry = InferInput("image", [3, 1, 8, 8], "FP32", data=stripes().tolist())
    assert_same(await logits(client, url, asking("digits", [entry])), binary)


async def check_binary_data_output_for_all(client: InferenceRESTClient, url: str) -> None:
    request = InferRequest(
        "digits", [given("image", stripes(), "FP32")], parameters={"binary_data_output": True}, request_id="q-1"
    )
    headers: dict[str, str] = {}
    answer = await client.infer(url, request, model_name="digits", response_headers=headers)
    equal((answer.id, answer.model_name), ("q-1", "digits"))
    assert "inference-header-content-length" in headers, headers
    equal(headers["content-type"], "application/octet-stream")


async def check_a_dict_as_request(client: InferenceRESTClient, url: str) -> None:
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2.5]}]}
    answer = await client.infer(url, body, model_name="versions")
    equal(answer.get_output_by_name("y").as_numpy().tolist(), [3.0, 4.5])


async def check_texts_in_and_out(client: InferenceRESTClient, url: str) -> None:
    wanted = EDGES["bytes"]
    for binary in (True, False):
        inputs = [given(name, values, name.upper(), binary=binary or name == "fp16") for name, values in EDGES.items()]
        request = asking("every_type", inputs, same_bytes=binary)
        answer = await client.infer(url, request, model_name="every_type")
        equal(texts(answer.get_output_by_name("same_bytes").as_numpy()), list(wanted))


async def check_each_datatype_in_json(client: InferenceRESTClient, url: str) -> None:
    inputs = [given(name, values, name.upper(), binary=name == "fp16") for name, values in EDGES.items()]
    names = {f"same_{name}": name == "fp16" for name in EDGES}
    answer = await client.infer(url, asking("every_type", inputs, **names), model_name="every_type")
    equal([output.name for output in answer.outputs], list(names))
    for name, values in EDGES.items():
        assert_same(answer.get_output_by_name(f"same_{name}").as_numpy(), values)


async def check_outputs_come_in_the_order_asked(client: InferenceRESTClient, url: str) -> None:
    rows = np.ones((2, 13), np.float32)
    for outputs in ({"label": True, "probabilities": False}, {"probabilities": True, "label": False}):
        request = asking("wine", [given("measurements", rows, "FP32")], **outputs)
        answer = await client.infer(url, request, model_name="wine")
        equal([output.name for output in answer.outputs], list(outputs))
        equal(answer.get_output_by_name("probabilities").as_numpy().shape, (2, 3))
        equal([text[:6] for text in texts(answer.get_output_by_name("label").as_numpy())], ["class_"] * 2)


async def check_errors_carry_our_text(client: InferenceRESTClient, url: str) -> None:
    request = asking("digits", [given("image", np.zeros((1, 1, 8, 9), np.float32), "FP32")])
    with refused(httpx.HTTPStatusError, r"tensor 'image': expected FP32 \[batch,1,8,8\], got shape.*400 Bad Request"):
        await client.infer(url, request, model_name="digits")
    with refused(httpx.HTTPStatusError, "no model 'digit'; did you mean 'digits'.*404 Not Found"):
        await client.infer(url, request, model_name="digit")
    with refused(httpx.HTTPStatusError, "tensor 'image': expected datatype FP32, got FP64"):
        await client.infer(url, asking("digits", [given("image", np.zeros((1, 1, 8, 8)), "FP64")]), model_name="digits")


async def main(address: str) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2")) as client:
        await report_coroutines(globals(), client, f"http://{address}")


asyncio.run(main(sys.argv[1]))
