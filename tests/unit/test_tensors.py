"""BF16 to and from FP32, and what arrays say of their datatype."""

from __future__ import annotations

from typing import Any

import ml_dtypes  # comes with onnx
import numpy as np
import pytest

from modelhost.tensors import BF16, DTYPES, TensorSpec, datatype_of, from_bfloat16, to_bfloat16

#: Every pattern of 16 bits.
CODES = np.arange(1 << 16, dtype=np.uint16)


def test_bf16_becomes_fp32_as_the_package_has_it_that_knows_such_numbers() -> None:
    got = from_bfloat16(CODES.view(BF16))
    assert np.array_equal(got, CODES.view(ml_dtypes.bfloat16).astype(np.float32), equal_nan=True)


@pytest.mark.parametrize(
    "numbers",
    [
        np.random.default_rng(0).integers(0, 1 << 32, 100_000, np.uint32).view(np.float32),
        # Exactly between two, and beside that.
        ((CODES.astype(np.uint32) << 16) | 0x8000).view(np.float32),
        ((CODES.astype(np.uint32) << 16) | 0x8001).view(np.float32),
        ((CODES.astype(np.uint32) << 16) | 0x7FFF).view(np.float32),
        np.array([[np.inf, -np.inf, np.nan], [0, -0.0, 3.4028235e38]], np.float32),
        np.empty((0, 2), np.float32),
    ],
)
def test_fp32_becomes_the_nearest_bf16(numbers: Any) -> None:
    got = to_bfloat16(numbers)
    with np.errstate(invalid="ignore"):
        want = numbers.astype(ml_dtypes.bfloat16)
    assert (got.dtype, got.shape) == (BF16, numbers.shape)
    assert np.array_equal(from_bfloat16(got), want.astype(np.float32), equal_nan=True)


def test_a_number_alone_and_numbers_in_any_order_in_memory() -> None:
    assert from_bfloat16(to_bfloat16(1.5)).item() == 1.5
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert from_bfloat16(to_bfloat16(turned)).tolist() == turned.tolist()
    assert from_bfloat16(to_bfloat16(turned).T).tolist() == turned.T.tolist()


@pytest.mark.parametrize("datatype", DTYPES)
def test_arrays_say_their_datatype(datatype: str) -> None:
    assert datatype_of(DTYPES[datatype]) == datatype


@pytest.mark.parametrize(
    ("dtype", "datatype"),
    [
        ("U3", "BYTES"),
        ("S1", "BYTES"),
        (ml_dtypes.bfloat16, "BF16"),
        ("V3", None),
        ([("a", "u1"), ("b", "u1")], None),
        (ml_dtypes.float8_e5m2, None),
        ("c8", None),
        ("M8[s]", None),
    ],
)
def test_other_dtypes_have_none_or_are_the_same(dtype: Any, datatype: str | None) -> None:
    assert datatype_of(dtype) == datatype


def test_what_stands_for_no_tensor_says_so() -> None:
    spec = TensorSpec.structured("y")
    assert (spec.datatype, spec.wire_shape, spec.is_structured) == ("BYTES", [-1], True)
    assert spec.describe() == "BYTES [-1] of JSON"
    assert not TensorSpec("y", "BYTES", (-1,), ("",)).is_structured
