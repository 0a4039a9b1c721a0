"""What crosses to a worker and back: read as it was written, and refused where it is anything else."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.runtime.worker.packing import STRUCTURED, Parcel, read
from modelhost.runtime.worker.segment import Segment
from modelhost.runtime.worker.wire import BrokenWire, Connection, WireEnded
from modelhost.tensors import BF16, DTYPES, to_bfloat16

_NUMBERS = [dtype for name, dtype in DTYPES.items() if name not in ("BYTES", "BF16")]


def crossed(*arrays: np.ndarray, structured: list[bool] | None = None) -> list[np.ndarray]:
    parcel = Parcel.of(arrays, structured or ())
    memory = np.zeros(parcel.size_bytes + 100, np.uint8)
    return [read(place, memory)[1] for place in parcel.write(memory)]


@pytest.mark.parametrize("dtype", _NUMBERS, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 5), (2, 3, 4)])
def test_numbers_of_every_type_and_shape_arrive_as_they_are(dtype: np.dtype, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(1)
    sent = (rng.random(shape) * 100).astype(dtype)
    (got,) = crossed(sent)
    assert (got.dtype, got.shape) == (sent.dtype, sent.shape)
    np.testing.assert_array_equal(got, sent)


def test_bfloat16_and_arrays_that_lie_in_steps_arrive_as_they_are() -> None:
    half, stepped = to_bfloat16([1.5, -2.0, np.inf]), np.arange(24).reshape(4, 6)[::2, 1::3].T
    got_half, got_stepped = crossed(half, stepped)
    assert got_half.dtype == BF16
    np.testing.assert_array_equal(got_half.view(np.uint16), half.view(np.uint16))
    np.testing.assert_array_equal(got_stepped, stepped)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), max_size=20))
def test_texts_arrive_as_they_are(texts: list[str]) -> None:
    sent = np.fromiter(texts, np.object_, len(texts))
    got, number = crossed(sent, np.float32([7]))
    assert got.tolist() == texts
    assert number.tolist() == [7]


def test_texts_in_numpys_own_form_and_of_any_shape_are_texts() -> None:
    (got,) = crossed(np.array([["a", "äö"], ["", "b"]]))
    assert got.tolist() == [["a", "äö"], ["", "b"]]
    with pytest.raises(ValueError, match="surrogates"):
        crossed(np.array(["\ud800"], np.object_))


def test_maps_sequences_and_optionals_arrive_as_they_are() -> None:
    values: list[Any] = [
        {"a": 0.25, "b": float("inf")},
        {3: 1.5, -4: float("nan")},
        None,
        [{"x": 1.0}],
        np.float32([[1, 2]]),
        np.array(["t", "u"], np.object_),
        "text",
    ]
    sent = np.fromiter(values, np.object_, len(values))
    (got,) = crossed(sent, structured=[True])
    assert got[0] == values[0]
    assert list(got[1]) == [3, -4]
    assert np.isnan(got[1][-4])
    assert got[2:4].tolist() == [None, [{"x": 1.0}]]
    np.testing.assert_array_equal(got[4], values[4])
    assert got[4].dtype == np.float32
    assert got[5].tolist() == ["t", "u"]
    assert got[6] == "text"


@pytest.mark.parametrize(
    "place",
    [
        None,
        [],
        ["FP32", [2], 0],
        ["FP31", [2], 0, 8],
        ["FP32", [2], 0, 7],
        ["FP32", [2], 0, 12],
        ["FP32", [-1], 0, 4],
        ["FP32", [True], 0, 4],
        ["FP32", [2.0], 0, 8],
        ["FP32", [1 << 62], 0, 8],
        ["FP32", [1 << 61, 1 << 61, 16], 0, 0],
        ["FP32", [2], 1024, 8],
        ["FP32", [2], -64, 8],
        ["FP32", [2], 0, -8],
        ["FP32", [2], 1, 8],
        ["FP32", [1] * 65, 0, 4],
        ["BYTES", [1 << 40], 0, 64],
        ["BYTES", [2], 0, 64],
        ["BYTES", [0], 0, 64],
        [STRUCTURED, [1], 0, 64],
    ],
)
def test_a_place_that_is_none_is_refused(place: object) -> None:
    memory = np.full(1024, 0xFF, np.uint8)
    with pytest.raises(BrokenWire):
        read(place, memory)


@pytest.mark.parametrize(
    "text",
    [
        b"{}",
        b"[{}]",
        b'[{"tensor": 1}]',
        b'[{"tensor": ["FP32", [9], "AAAA"]}]',
        b'[{"tensor": ["FP32", [1], "\xc3\xa4"]}]',
        b'[{"map": 1}]',
        b'[{"map": [[{"list": []}, 1]]}]',
        b'[{"list": 5}]',
        b"[" * 100_000,
        b'[{"list":' * 50_000,
        b"\xff",
    ],
)
def test_elements_that_are_none_are_refused(text: bytes) -> None:
    memory = np.frombuffer(text, np.uint8)
    with pytest.raises(BrokenWire):
        read([STRUCTURED, [1], 0, len(text)], memory)


@given(st.binary(max_size=300), st.integers(0, 40), st.sampled_from(["BYTES", STRUCTURED, "FP16"]))
def test_whatever_lies_there_is_read_or_refused(data: bytes, count: int, datatype: str) -> None:
    memory = np.frombuffer(data, np.uint8)
    try:
        _, got = read([datatype, [count], 0, len(data)], memory)
    except BrokenWire:
        return
    assert got.nbytes < 1 << 20


def test_a_segment_cannot_be_made_smaller_or_larger() -> None:
    import os

    segment = Segment.create(100_000)
    try:
        assert segment.size_bytes == 128 << 10
        for size in (4096, 1 << 20):
            with pytest.raises(PermissionError):
                os.ftruncate(segment.descriptor, size)
    finally:
        segment.close()


def test_a_segment_holds_what_was_written_until_that_is_given_back() -> None:
    segment = Segment.create(1 << 20)
    try:
        assert segment.held_bytes() == 0
        segment.bytes[:] = 1
        assert segment.held_bytes() == 1 << 20
        segment.give_back(64 << 10)
        assert segment.held_bytes() == 64 << 10
        assert segment.bytes[0] == 1
        assert segment.bytes[-1] == 0
    finally:
        segment.close()


def test_what_is_no_message_is_told_from_an_end() -> None:
    ours, theirs = Connection.pair()
    try:
        for data, reason in ((b"nonsense", "no JSON"), (b"[1]", "expected an object, got list")):
            theirs.send(data)
            with pytest.raises(BrokenWire, match=reason) as broken:
                ours.receive()
            assert not isinstance(broken.value, WireEnded)
        with pytest.raises(BrokenWire, match="longer than"):
            ours.send({"a": base64.b64encode(bytes(200_000)).decode()})
        theirs.close()
        with pytest.raises(WireEnded):
            ours.receive()
        with pytest.raises(WireEnded):
            ours.send({})
    finally:
        ours.close()
        theirs.close()
