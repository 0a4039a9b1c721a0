"""The values that decoding gives and encoding takes, free of any wire detail."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from modelhost.tensors import Array

#: A body as it came, or as a view on the buffer that it was received into.
Body: TypeAlias = bytes | memoryview


class OutputRequest(NamedTuple):
    """One output that the client wants, and whether as raw bytes or as JSON."""

    name: str
    binary: bool


@dataclass(slots=True)  # not frozen: each request makes one, and that would take three times as long
class InferRequest:
    """A decoded request whose names, datatypes and shapes fit the model.

    `feeds` has every input of the model, in the order sent. Numeric arrays that came as raw bytes
    may be read-only views on the body and keep it alive. `outputs` is in the order asked, or all
    of the model's. `timeout_s` is None where the client set no limit.
    """

    id: str
    feeds: dict[str, Array]
    outputs: tuple[OutputRequest, ...]
    timeout_s: float | None


@dataclass(slots=True)  # not frozen, as above
class EncodedResponse:
    """A response body; `header_length` is the length in bytes of its JSON part.

    `header_length` None means that all of it is JSON: send it as `application/json`. Otherwise send
    it as `application/octet-stream` with `Inference-Header-Content-Length: header_length`. `coding` is
    the content coding that the body is in, "" for none; `header_length` counts what it was before.
    """

    body: bytes
    header_length: int | None
    coding: str = ""
