"""The KServe SDK's REST client with the V1 protocol: `python kserve_rest_v1.py HOST:PORT`."""

from __future__ import annotations

import asyncio
import sys
from urllib.parse import quote

import httpx
import numpy as np
from kserve import InferenceRESTClient
from kserve.inference_client import RESTConfig
from reporting import equal, refused, report_coroutines
from values import ODD_NAME, stripes


async def check_server_is_live(client: InferenceRESTClient, url: str) -> None:
    equal(await client.is_server_live(url), True)


async def check_model_readiness(client: InferenceRESTClient, url: str) -> None:
    equal([await client.is_model_ready(url, name) for name in ("digits", quote(ODD_NAME))], [True, True])
    with refused(httpx.HTTPStatusError, "no model 'nothing'.*404 Not Found"):
        await client.is_model_ready(url, "nothing")


async def check_a_model_that_was_unloaded_is_not_ready(client: InferenceRESTClient, url: str) -> None:
    async with httpx.AsyncClient(base_url=url) as plain:
        for change, is_ready in (("unload", False), ("load", True)):
            (await plain.post(f"/v2/repository/models/passing/{change}")).raise_for_status()
            equal(await client.is_model_ready(url, "passing"), is_ready)


async def check_predictions_for_instances(client: InferenceRESTClient, url: str) -> None:
    answer = await client.infer(url, {"instances": stripes().tolist()}, model_name="digits")
    equal(np.array(answer["predictions"]).shape, (3, 10))
    answer = await client.infer(url, {"instances": [1, 2.5]}, model_name="versions")
    equal(answer["predictions"], [3.0, 4.5])


async def check_instances_and_predictions_of_several_tensors(client: InferenceRESTClient, url: str) -> None:
    flowers = [{"species": [name], "sepal": [5.1, 3.5]} for name in ("setosa", "virginica")]
    answer = await client.infer(url, {"instances": flowers}, model_name="iris_petals")
    equal(np.array(answer["predictions"]).shape, (2, 2))
    answer = await client.infer(url, {"instances": [[1.0] * 13]}, model_name="wine")
    (wine,) = answer["predictions"]
    equal((wine["label"][:6], len(wine["probabilities"])), ("class_", 3))


async def check_inputs_by_name(client: InferenceRESTClient, url: str) -> None:
    answer = await client.infer(url, {"inputs": {"x": [1, 2]}}, model_name="versions")
    equal(answer["outputs"], [3.0, 4.0])


async def check_errors_carry_our_text(client: InferenceRESTClient, url: str) -> None:
    with refused(httpx.HTTPStatusError, "no model 'digit'; did you mean 'digits'.*404 Not Found"):
        await client.infer(url, {"instances": [1]}, model_name="digit")
    with refused(httpx.HTTPStatusError, "'image'.*400 Bad Request"):
        await client.infer(url, {"instances": [[1, 2]]}, model_name="digits")
    with refused(httpx.HTTPStatusError, "instances.*400 Bad Request"):
        await client.infer(url, {"rows": []}, model_name="digits")


async def main(address: str) -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v1")) as client:
        await report_coroutines(globals(), client, f"http://{address}")


asyncio.run(main(sys.argv[1]))
