"""Ray Serve: a proxy process, and replicas behind it."""

# mypy: ignore-errors
# The library is only in the environment that this program runs in.
import os

import ray
from ray import serve
from starlette.responses import Response

from benchmarks.peers.common import FORM, PORT, WORKERS, Model


@serve.deployment(num_replicas=WORKERS, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0.5})
class Predictor:
    """One replica."""

    def __init__(self, form):
        self.model, self.form = Model(), form

    async def __call__(self, request):
        """Answers one request."""
        if self.form == "binary":
            return Response(self.model.answer_raw(await request.body()), media_type="application/octet-stream")
        return self.model.answer(await request.json())


if __name__ == "__main__":
    variables = {name: os.environ[name] for name in os.environ if name.startswith("BENCHMARK_")}
    variables["PYTHONPATH"] = os.environ["PYTHONPATH"]
    ray.init(
        num_cpus=WORKERS,
        include_dashboard=False,
        log_to_driver=False,
        runtime_env={"env_vars": variables},
        _temp_dir=os.getcwd(),  # goes with the process; ray's own stays
    )
    serve.start(http_options={"host": "127.0.0.1", "port": PORT})
    serve.run(Predictor.bind(FORM), route_prefix="/predict", blocking=True)
