"""tritonclient over HTTP with futures and threads: `python tritonclient_http_futures.py HOST:PORT`."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from reporting import equal, refused, report
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException
from values import stripes


def image(values: np.ndarray, *, binary: bool = True) -> list[InferInput]:
    entry = InferInput("image", list(values.shape), "FP32")
    entry.set_data_from_numpy(values, binary_data=binary)
    return [entry]


def check_futures_each_get_their_own_answer(address: str) -> None:
    images = stripes(40)
    with InferenceServerClient(address, concurrency=4) as client:
        expected = client.infer("digits", image(images)).as_numpy("logits")
        pending = [
            client.async_infer("digits", image(images[row : row + 1]), request_id=f"row {row}") for row in range(40)
        ]
        answers = [future.get_result() for future in pending]
    equal([answer.get_response()["id"] for answer in answers], [f"row {row}" for row in range(40)])
    found = np.concatenate([answer.as_numpy("logits") for answer in answers])
    assert np.allclose(found, expected, atol=1e-4), np.abs(found - expected).max()


def check_futures_carry_errors(address: str) -> None:
    with InferenceServerClient(address, concurrency=2) as client:
        wrong = client.async_infer("digits", image(np.zeros((1, 1, 8, 9), np.float32)))
        right = client.async_infer("digits", image(stripes(1)))
        with refused(InferenceServerException, "tensor 'image': expected FP32"):
            wrong.get_result()
        equal(right.get_result().as_numpy("logits").shape, (1, 10))


def check_many_clients_at_once_each_get_their_own_answer(address: str) -> None:
    images = stripes(8 * 20)

    def ask(worker: int) -> bool:
        rows = images[worker * 20 : worker * 20 + 20]
        with InferenceServerClient(address) as own:
            together = own.infer("digits", image(rows)).as_numpy("logits")
            single = [
                own.infer(
                    "digits",
                    image(rows[row : row + 1], binary=row % 2 == 0),
                    outputs=[InferRequestedOutput("logits", binary_data=row % 3 == 0)],
                ).as_numpy("logits")[0]
                for row in range(20)
            ]
        return np.allclose(together, single, atol=1e-4)

    with ThreadPoolExecutor(8) as threads:
        equal(list(threads.map(ask, range(8))), [True] * 8)


report(globals(), sys.argv[1])
