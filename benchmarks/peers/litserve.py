"""LitServe: FastAPI in front, worker processes behind queues."""

# mypy: ignore-errors
# The library is only in the environment that this program runs in.
from typing import Annotated

import litserve
from fastapi import Depends, Request, Response

from benchmarks.peers.common import FORM, PORT, WORKERS, Model


async def read_body(request: Request) -> bytes:
    """LitServe itself reads JSON and forms."""
    return await request.body()


class Json(litserve.LitAPI):
    """Takes and gives dictionaries."""

    def setup(self, device):
        """Loads, in the worker."""
        self.model = Model()

    def decode_request(self, request):
        """Leaves the document as it is."""
        return request

    def predict(self, x):
        """Answers one request."""
        return self.model.answer(x)

    def encode_response(self, output):
        """Leaves the document as it is."""
        return output


class Raw(Json):
    """Takes and gives bytes."""

    def decode_request(self, request: Annotated[bytes, Depends(read_body)]):
        """Leaves the bytes as they are."""
        return request

    def predict(self, x):
        """Answers one request."""
        return self.model.answer_raw(x)

    def encode_response(self, output):
        """Returns the bytes as they are."""
        return Response(output, media_type="application/octet-stream")


if __name__ == "__main__":
    api = Raw() if FORM == "binary" else Json()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=WORKERS, timeout=120)
    server.run(host="127.0.0.1", port=PORT, generate_client_file=False, log_level="warning")
