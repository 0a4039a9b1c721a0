"""tritonclient's gRPC streams and futures, sync and asyncio: `python tritonclient_grpc_streams.py HOST:PORT`."""

from __future__ import annotations

import asyncio
import queue
import sys
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import tritonclient.grpc.aio
from reporting import equal, refused, report
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException

_WAIT_S = 30


def numbers(*values: float, name: str = "x") -> list[InferInput]:
    entry = InferInput(name, [len(values)], "FP32")
    entry.set_data_from_numpy(np.array(values, np.float32))
    return [entry]


def said(result: Any) -> tuple[str, list[float]]:
    return result.get_response().id, result.as_numpy("y").tolist()


def check_a_stream_answers_in_order(address: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        for row in range(20):
            client.async_stream_infer("versions", numbers(row), request_id=f"row {row}", model_version="1")
        came = [answers.get(timeout=_WAIT_S) for _ in range(20)]
        client.stop_stream()
    equal([error for _, error in came], [None] * 20)
    equal([said(result) for result, _ in came], [(f"row {row}", [row + 1.0]) for row in range(20)])


def check_an_error_does_not_end_a_stream(address: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("versions", numbers(1, name="z"))
        client.async_stream_infer("nothing", numbers(1))
        client.async_stream_infer("versions", numbers(1))
        (_, first), (_, second), (third, last) = (answers.get(timeout=_WAIT_S) for _ in range(3))
        client.stop_stream()
    assert "'z'" in str(first), first
    assert "no model 'nothing'" in str(second), second
    equal((last, said(third)), (None, ("", [3.0])))


def check_a_stream_says_which_answer_is_the_last(address: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(address) as client:
        client.start_stream(lambda result, error: answers.put((result, error)))
        client.async_stream_infer("versions", numbers(1), enable_empty_final_response=True)
        result, error = answers.get(timeout=_WAIT_S)
        client.stop_stream()
    equal(error, None)
    equal(result.get_response().parameters["triton_final_response"].bool_param, True)
    equal(answers.qsize(), 0)


def check_a_stream_of_coroutines(address: str) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for row in range(10):
            model = "nothing" if row == 5 else "versions"
            yield {"model_name": model, "inputs": numbers(row), "request_id": f"row {row}"}

    async def answers() -> list[tuple[Any, Any]]:
        async with tritonclient.grpc.aio.InferenceServerClient(address) as client:
            return [answer async for answer in client.stream_infer(requests())]

    came = asyncio.run(asyncio.wait_for(answers(), _WAIT_S))
    equal([row for row, (_, error) in enumerate(came) if error], [5])
    found = [said(result) for result, _ in came if result is not None]
    equal(found, [(f"row {row}", [row + 2.0]) for row in range(10) if row != 5])


def check_futures_each_get_their_own_answer(address: str) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    with InferenceServerClient(address) as client:
        for row in range(30):
            client.async_infer(
                "versions", numbers(row), lambda result, error: answers.put((result, error)), request_id=f"row {row}"
            )
        came = [answers.get(timeout=_WAIT_S) for _ in range(30)]
    equal([error for _, error in came], [None] * 30)
    expected = sorted((f"row {row}", [row + 2.0]) for row in range(30))
    equal(sorted(said(result) for result, _ in came), expected)


def check_futures_carry_errors(address: str) -> None:
    answers: queue.Queue[Any] = queue.Queue()
    with InferenceServerClient(address) as client:
        client.async_infer("nothing", numbers(1), lambda result, error: answers.put(error))
        with refused(InferenceServerException, "no model 'nothing'"):
            raise answers.get(timeout=_WAIT_S)


report(globals(), sys.argv[1])
