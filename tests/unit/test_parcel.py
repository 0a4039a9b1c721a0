"""Tensors between the processes of a host come out as they went in, numbers without a copy."""

from __future__ import annotations

import numpy as np
import pytest

from modelhost.api.parcel import pack, tensor_names, text_cost_bytes, unpack, unpack_head
from modelhost.errors import UnrepresentableOutput
from modelhost.tensors import BF16, DTYPES, Array

NUMBERS = np.arange(6).reshape(2, 3)
EACH: dict[str, Array] = {
    name: NUMBERS.astype(dtype) for name, dtype in DTYPES.items() if name not in ("BF16", "BYTES")
}
EACH["BF16"] = NUMBERS.astype(np.uint16).view(BF16)
EACH["BYTES"] = np.array([["a", "größe"], ["", "\N{PILE OF POO}" * 3]], dtype=object)


def there_and_back(tensors: dict[str, Array], **more: object) -> tuple[dict[str, object], dict[str, Array]]:
    head_bytes, pieces = pack({"model": "a"}, tensors.items(), **more)  # type: ignore[arg-type]
    parcel = memoryview(bytearray(b"".join(pieces))).toreadonly()
    head = unpack_head(parcel[:head_bytes])
    assert head["model"] == "a"
    assert tensor_names(head) == list(tensors)
    return head, unpack(head, parcel[head_bytes:])


def test_every_datatype_and_shape_comes_out_as_it_went_in() -> None:
    tensors = EACH | {
        "empty": np.empty((0, 4), np.float32),
        "scalar": np.array(3.5),
        "turned": np.arange(6.0).reshape(2, 3).T,
    }
    _, found = there_and_back(tensors)
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes() or found[name].tolist() == array.tolist()


def test_numbers_are_views_whatever_comes_before_them() -> None:
    _, found = there_and_back(
        {"odd": np.ones(3, np.uint8), "wide": np.ones(5), "text": EACH["BYTES"], "last": np.ones(2)}
    )
    assert not any(found[name].flags.owndata or found[name].flags.writeable for name in ("odd", "wide", "last"))


def test_text_costs_what_its_objects_hold_and_numbers_nothing() -> None:
    head, found = there_and_back({"text": EACH["BYTES"], "numbers": np.ones(9)})
    held = sum(64 + 4 * len(text) for text in found["text"].ravel())
    assert text_cost_bytes(head) >= held
    assert text_cost_bytes(there_and_back({"numbers": np.ones(9)})[0]) == 0


def test_what_is_structured_goes_as_its_json() -> None:
    values = np.empty(2, dtype=object)
    values[:] = [{"1": 0.5}, {"2": 0.25}]
    _, found = there_and_back({"map": values}, structured=("map",))
    assert found["map"].tolist() == ['{"1":0.5}', '{"2":0.25}']


def test_what_v2_has_no_datatype_for_is_refused() -> None:
    with pytest.raises(UnrepresentableOutput, match="tensor 'x': V2 has no datatype for numpy complex128"):
        pack({}, [("x", np.ones(1, complex))])
