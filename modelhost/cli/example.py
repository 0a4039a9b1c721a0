"""A request that works when pasted, for a model of the repository."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from modelhost.errors import ModelHostError
from modelhost.tensors import TensorSpec

if TYPE_CHECKING:
    from modelhost.pool import Pool

#: Models that are looked at for a short example; a repository may have ten thousand.
_LOOKED_AT = 5

#: An example that is longer than this is no pleasure to paste.
_MAX_ELEMENTS = 256


async def example_curl(pool: Pool, url: str, curl: str) -> str | None:
    """Returns one line that begins with `curl` for the model whose inputs are the shortest to write, or None."""
    best: tuple[int, str] | None = None
    for name in pool.catalog.names[:_LOOKED_AT]:
        try:
            file, face = await pool.describe(name)
        except ModelHostError:
            continue
        inputs = tuple(face.inputs.values())
        size = sum(math.prod(_shape(spec)) for spec in inputs)
        if any(spec.datatype == "FP16" for spec in inputs) or size > _MAX_ELEMENTS:
            continue
        body = json.dumps({"inputs": example_inputs(inputs)}, separators=(",", ":"))
        target = shlex.quote(f"{url}/v2/models/{quote(file.name, safe='')}/infer")
        line = f"{curl} {target} -d {shlex.quote(body)}"
        if best is None or len(line) < best[0]:
            best = (len(line), line)
    return None if best is None else best[1]


def example_inputs(specs: Iterable[TensorSpec]) -> list[dict[str, Any]]:
    """Returns inputs of zeros (or empty texts) with 1 for every dimension of any size."""
    return [
        {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": _shape(spec),
            "data": [_zero(spec.datatype)] * math.prod(_shape(spec)),
        }
        for spec in specs
    ]


def _shape(spec: TensorSpec) -> list[int]:
    return [1 if size < 0 else size for size in spec.wire_shape]


def _zero(datatype: str) -> Any:
    return {"BYTES": "", "BOOL": False, "FP32": 0, "FP64": 0}.get(datatype, 0)
