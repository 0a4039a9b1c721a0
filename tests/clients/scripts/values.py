"""What the scripts send: the edges of each datatype, and images that are all alike."""

from __future__ import annotations

import numpy as np

#: Beside the other script, see tests/clients/conftest.py.
ODD_NAME = "grün & rot 50%25"

#: Input of `every_type` to two values; its outputs are `same_INPUT`.
EDGES = {
    "bool": np.array([True, False]),
    "uint8": np.array([0, 2**8 - 1], np.uint8),
    "uint16": np.array([0, 2**16 - 1], np.uint16),
    "uint32": np.array([0, 2**32 - 1], np.uint32),
    "uint64": np.array([0, 2**64 - 1], np.uint64),
    "int8": np.array([-(2**7), 2**7 - 1], np.int8),
    "int16": np.array([-(2**15), 2**15 - 1], np.int16),
    "int32": np.array([-(2**31), 2**31 - 1], np.int32),
    "int64": np.array([-(2**63), 2**63 - 1], np.int64),
    "fp16": np.array([-65504, 6e-8], np.float16),
    "fp32": np.array([1e-45, -3.4028235e38], np.float32),
    "fp64": np.array([5e-324, -1.7976931348623157e308]),
    "bytes": np.array(["", 'größe "0"\n\x00€'], np.object_),
}


def stripes(rows: int = 3) -> np.ndarray:
    """Returns images for `digits` whose answers differ from row to row."""
    return (np.arange(rows * 64, dtype=np.float32) % 17).reshape(rows, 1, 8, 8)


def texts(found: np.ndarray) -> list[str]:
    """Returns a tensor of texts as `str`, which some clients give as bytes."""
    return [text.decode() if isinstance(text, bytes) else text for text in found.ravel()]


def assert_same(found: np.ndarray, expected: np.ndarray) -> None:
    """Asserts that two tensors have the same shape and bits."""
    assert found is not None, "the output is missing"
    assert found.shape == expected.shape, f"expected shape {expected.shape}, got {found.shape}"
    if expected.dtype == np.object_:
        assert texts(found) == texts(expected), f"expected {expected}, got {found}"
    else:
        assert found.dtype == expected.dtype, f"expected {expected.dtype}, got {found.dtype}"
        assert found.tobytes() == expected.tobytes(), f"expected {expected}, got {found}"
