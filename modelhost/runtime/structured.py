"""Outputs that are no tensors: ONNX Runtime gives lists, dicts, arrays and None, we give arrays of those."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from modelhost.tensors import Array


def as_elements(value: object) -> Array:
    """Returns the elements of a sequence as an array of objects, or a map or an optional as its only element."""
    elements = value if isinstance(value, list) else [value]
    # Assigning a list would make a larger array of arrays of one shape.
    return np.fromiter(elements, np.object_, len(elements))


class StructuredSession:
    """A session some of whose outputs, `structured` by name, are no tensors. Any thread."""

    def __init__(self, session: Any, structured: Collection[str]) -> None:
        self._session, self._structured = session, frozenset(structured)

    def run(self, names: Sequence[str], feeds: Mapping[str, Array], options: Any) -> list[Array]:
        """Runs as the session does; what is no tensor comes as an array of its elements."""
        results = self._session.run(names, feeds, options)
        return [
            as_elements(result) if name in self._structured else result
            for name, result in zip(names, results, strict=True)
        ]
