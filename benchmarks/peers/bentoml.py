"""BentoML: Starlette, one process for each worker; numbers as JSON, bytes as a file."""

# mypy: ignore-errors
# The library is only in the environment that this program runs in.
from pathlib import Path
from typing import Annotated

import bentoml
from bentoml.validators import ContentType

from benchmarks.peers.common import FORM, WORKERS, Model

_OPTIONS = {"workers": WORKERS, "traffic": {"timeout": 120}, "logging": {"access": {"enabled": False}}}


@bentoml.service(**_OPTIONS)
class Json:
    """Takes and gives numbers."""

    def __init__(self):
        self.model = Model()

    @bentoml.api
    def predict(self, shape: list[int], data: list[float]) -> dict:
        """Answers one request."""
        return self.model.answer({"shape": shape, "data": data})


@bentoml.service(**_OPTIONS)
class Raw:
    """Takes a file, which is how a body of bytes is given, and gives bytes."""

    def __init__(self):
        self.model = Model()

    @bentoml.api
    def predict(
        self, body: Annotated[Path, ContentType("application/octet-stream")], /
    ) -> Annotated[bytes, ContentType("application/octet-stream")]:
        """Answers one request."""
        return self.model.answer_raw(body.read_bytes())


service = Raw if FORM == "binary" else Json
