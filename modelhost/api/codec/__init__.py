"""Pure synchronous functions between V2 request and response bytes and named tensors.

No HTTP framework, no model runtime and no memory manager in here: the caller reserves
what `foresee` says before it decodes, and maps the errors to statuses.
"""

from __future__ import annotations

from modelhost.api.codec.compression import (
    choose_coding,
    compress,
    compress_cost_bytes,
    decompress,
    decompressed_size_bytes,
)
from modelhost.api.codec.cost import Foreseen, foresee, json_cost_bytes
from modelhost.api.codec.messages import Body, EncodedResponse, InferRequest, OutputRequest
from modelhost.api.codec.quick import QuickCodec
from modelhost.api.codec.request import decode_request, parse_header_length
from modelhost.api.codec.response import encode_cost_bytes, encode_response
from modelhost.api.codec.structured import json_texts, json_values

__all__ = [
    "Body",
    "EncodedResponse",
    "Foreseen",
    "InferRequest",
    "OutputRequest",
    "QuickCodec",
    "choose_coding",
    "compress",
    "compress_cost_bytes",
    "decode_request",
    "decompress",
    "decompressed_size_bytes",
    "encode_cost_bytes",
    "encode_response",
    "foresee",
    "json_cost_bytes",
    "json_texts",
    "json_values",
    "parse_header_length",
]
