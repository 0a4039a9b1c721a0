"""MLServer: V2 on FastAPI; over REST its tensors are JSON."""

# mypy: ignore-errors
# The library is only in the environment that this program runs in.
import asyncio

from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse

from benchmarks.peers.common import FILE, PORT, Model


class Runtime(MLModel):
    """The session behind MLServer's own codec."""

    async def load(self) -> bool:
        """Loads, where it runs."""
        self.model = Model()
        return True

    async def predict(self, payload):
        """Answers one request."""
        y = self.model.run(NumpyCodec.decode_input(payload.inputs[0]))
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", y)])


async def main() -> None:
    """Serves until it is told to end."""
    settings = Settings(
        host="127.0.0.1", http_port=PORT, grpc_port=PORT + 1, metrics_endpoint=None, parallel_workers=0, debug=False
    )
    name = FILE.split("/")[-3]
    model = ModelSettings(name=name, implementation="benchmarks.peers.mlserver.Runtime")
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(main())
