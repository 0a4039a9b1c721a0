"""mosec: an HTTP front end in Rust, and worker processes behind sockets."""

# mypy: ignore-errors
# The library is only in the environment that this program runs in.
from __future__ import annotations

import os
import sys

from mosec import Server, Worker

from benchmarks.peers.common import FORM, PORT, WORKERS, Model


class Json(Worker):
    """Parses and writes JSON with mosec's own defaults."""

    def __init__(self):
        super().__init__()
        self.model = Model()

    def forward(self, data):
        """Answers one request."""
        return self.model.answer(data)


class Raw(Json):
    """Takes and gives bytes."""

    resp_mime_type = "application/octet-stream"

    def deserialize(self, data):
        """Leaves the bytes as they are."""
        return data

    def forward(self, data):
        """Answers one request."""
        return self.model.answer_raw(data)

    def serialize(self, data):
        """Leaves the bytes as they are."""
        return data


if __name__ == "__main__":
    os.environ["MOSEC_PORT"] = str(PORT)
    os.environ["MOSEC_ADDRESS"] = "127.0.0.1"
    os.environ["MOSEC_TIMEOUT"] = "120000"
    os.environ["MOSEC_MAX_BODY_SIZE"] = str(64 << 20)
    sys.argv = sys.argv[:1]
    server = Server()
    server.append_worker(Raw if FORM == "binary" else Json, num=WORKERS)
    server.run()
