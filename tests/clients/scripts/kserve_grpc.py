"""The KServe SDK's gRPC client: `python kserve_grpc.py HOST:PORT`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput
from reporting import equal, refused, report_coroutines
from values import EDGES, ODD_NAME, assert_same, stripes, texts


def given(name: str, values: np.ndarray, datatype: str) -> InferInput:
    entry = InferInput(name, list(values.shape), datatype)
    entry.set_data_from_numpy(values)
    return entry


def listed(name: str, values: np.ndarray, datatype: str) -> InferInput:
    """Returns an input in gRPC's typed form, which holds numbers instead of bytes."""
    return InferInput(name, list(values.shape), datatype, data=values.ravel().tolist())


async def check_server_is_live_and_ready(client: InferenceGRPCClient) -> None:
    equal(await client.is_server_live(), True)
    equal(await client.is_server_ready(), True)


async def check_model_readiness(client: InferenceGRPCClient) -> None:
    equal([await client.is_model_ready(name) for name in ("digits", ODD_NAME)], [True, True])
    with refused(grpc.RpcError, "(?s)NOT_FOUND.*no model 'nothing'"):
        await client.is_model_ready("nothing")


async def check_raw_and_typed_tensors_give_the_same_answer(client: InferenceGRPCClient) -> None:
    answers = [
        await client.infer(InferRequest("digits", [form("image", stripes(), "FP32")], request_id="q-1"))
        for form in (given, listed)
    ]
    equal([(answer.id, answer.model_name, answer.model_version) for answer in answers], [("q-1", "digits", "1")] * 2)
    first, second = (answer.get_output_by_name("logits").as_numpy() for answer in answers)
    equal(first.shape, (3, 10))
    assert_same(second, first)


async def check_each_datatype_raw(client: InferenceGRPCClient) -> None:
    inputs = [given(name, values, name.upper()) for name, values in EDGES.items()]
    answer = await client.infer(InferRequest("every_type", inputs))
    for name, values in EDGES.items():
        assert_same(answer.get_output_by_name(f"same_{name}").as_numpy(), values)


async def check_each_datatype_typed(client: InferenceGRPCClient) -> None:
    values = {name: edge for name, edge in EDGES.items() if name != "fp16"}  # which has no typed form
    inputs = [listed(name, edge, name.upper()) for name, edge in values.items()]
    answer = await client.infer(InferRequest("every_typed", inputs))
    for name, edge in values.items():
        output = answer.get_output_by_name(f"same_{name}")
        assert output.data, f"{name} came raw"
        assert_same(np.array(output.data, edge.dtype), edge)


async def check_outputs_come_in_the_order_asked(client: InferenceGRPCClient) -> None:
    rows = np.ones((2, 13), np.float32)
    for names in (["label", "probabilities"], ["probabilities", "label"], ["label"]):
        for form in (given, listed):
            wanted: list[Any] = [RequestedOutput(name) for name in names]
            request = InferRequest("wine", [form("measurements", rows, "FP32")], request_outputs=wanted)
            answer = await client.infer(request)
            equal([output.name for output in answer.outputs], names)
            equal([text[:6] for text in texts(answer.get_output_by_name("label").as_numpy())], ["class_"] * 2)


async def check_errors_carry_our_text(client: InferenceGRPCClient) -> None:
    wrong = [given("image", np.zeros((1, 1, 8, 9), np.float32), "FP32")]
    with refused(grpc.RpcError, r"(?s)INVALID_ARGUMENT.*tensor 'image': expected FP32 \[batch,1,8,8\]"):
        await client.infer(InferRequest("digits", wrong))
    with refused(grpc.RpcError, "(?s)NOT_FOUND.*no model 'digit'; did you mean 'digits'"):
        await client.infer(InferRequest("digit", wrong))
    with refused(grpc.RpcError, "(?s)NOT_FOUND.*version"):
        await client.infer(InferRequest("digits", wrong, model_version="9"))


async def main(address: str) -> None:
    async with InferenceGRPCClient(address) as client:
        await report_coroutines(globals(), client)


asyncio.run(main(sys.argv[1]))
