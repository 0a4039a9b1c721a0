"""The bound for the memory that decoding takes, against what a fresh process really used."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import orjson
import probes
import pytest

from modelhost.api.codec import decode_request, foresee, json_cost_bytes
from modelhost.errors import InvalidTensor
from modelhost.tensors import DTYPES, TensorSpec

N = 200_000
#: The kernel counts resident pages in batches per processor (the probe stays on one).
COUNTING_ERROR_BYTES = 1 << 20
FLOATS = [b"0.1", b"0.1234567", b"0.12345678901234567", b"-1.2345678901234567e-10"]

#: By how many bytes decoding the body in the file makes the process grow at its peak.
PROBE = """
from modelhost.api.codec import decode_request
from modelhost.errors import ModelHostError
from modelhost.tensors import TensorSpec
from modelhost.testing.running import read_status

def decode(body, header, inputs):
    try:
        return decode_request(body, header_length=header, inputs=inputs, outputs={},
                              max_decoded_bytes=1 << 40)
    except ModelHostError as error:
        return error

def measure(path, datatype, rank, header):
    inputs = {"x": TensorSpec("x", datatype, (-1,) * rank)}
    # Code that runs for the first time is read from its file, which also counts as resident.
    decode(('["' + "a" * 300_000 + '\U0001f600"]').encode(), None, inputs)
    for end in ("1", "true", "1e39", "x"):
        data = "1," * 10_000 + end
        text = '{"inputs":[{"name":"x","datatype":"FP32","shape":[10001],"data":[' + data + "]}]}"
        decode(text.encode(), None, inputs)
    with open(path, "rb", buffering=0) as file:
        body = file.read()
    before = read_status("VmRSS")
    result = decode(body, header if header >= 0 else None, inputs)
    return read_status("VmHWM") - before, type(result).__name__
"""
Grown = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grown]:
    """What answers how much a process grows by decoding a body, and what became of it."""
    path = tmp_path_factory.mktemp("probe") / "body"
    with probes.forking(probes.ONE_PROCESSOR + PROBE) as ask:

        def grown(body: bytes, datatype: str, rank: int, header: int = -1) -> tuple[int, str]:
            path.write_bytes(body)
            size, kind = ask(str(path), datatype, rank, header)
            return int(size), kind

        yield grown


def bound_of(body: bytes, datatype: str, rank: int) -> int:
    inputs = {"x": TensorSpec("x", datatype, (-1,) * rank)}
    return foresee(body, header_length=None, inputs=inputs).cost_bytes


def wrap(datatype: str, shape: list[int], data: bytes) -> bytes:
    head = orjson.dumps({"name": "x", "datatype": datatype, "shape": shape})[:-1]
    return b'{"inputs":[' + head + b',"data":' + data + b"}]}"


def items(item: bytes, count: int = N, separator: bytes = b",") -> bytes:
    return b"[" + separator.join([item] * count) + b"]"


HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty lists": lambda: items(b"[]"),
    "lists of empty lists": lambda: items(b"[[]]"),
    "lists of one": lambda: items(b"[0.1]"),
    "deep lists": lambda: items(b"[" * 100 + b"]" * 100, N // 100),
    "empty objects": lambda: items(b"{}"),
    "objects of one": lambda: items(b'{"a":1}'),
    "objects of six": lambda: items(b'{"a":0.1,"b":2,"c":3,"d":4,"e":5,"f":6}', N // 4),
    "deep objects": lambda: items(b'{"a":' * 100 + b"1" + b"}" * 100, N // 100),
    "one big object": lambda: b"{" + b",".join(b'"%x":0.1' % i for i in range(N)) + b"}",
    "object of objects": lambda: b"{" + b",".join(b'"%x":{}' % i for i in range(N)) + b"}",
    "long keys": lambda: b"{" + b",".join(b'"%099d":1' % i for i in range(N)) + b"}",
    "short strings": lambda: items(b'"ab"'),
    "two-byte characters": lambda: items('"é"'.encode()),
    "three-byte characters": lambda: items('"日"'.encode()),
    "four-byte characters": lambda: items('"😀"'.encode()),
    "widened string": lambda: b'["' + b"a" * 10_000_000 + '😀"]'.encode(),
    "widened by an escape": lambda: b'["' + b"a" * 10_000_000 + b'\\uD83D\\ude00"]',
    "doubled by an escape": lambda: b'["' + b"a" * 10_000_000 + b'\\u65e5"]',
    "escapes": lambda: b'["' + b"\\n" * 5_000_000 + b'"]',
    "white space": lambda: b" " * 10_000_000 + b"[]",
    "error after numbers": lambda: items(b"0.1")[:-1] + b"x",
    "error after a wide string": lambda: b'["' + b"a" * 10_000_000 + '😀"x'.encode(),
}

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")


@needs_proc
@pytest.mark.parametrize("name", HOSTILE)
def test_no_document_takes_more_than_the_bound(name: str, grown: Grown) -> None:
    body = HOSTILE[name]()
    used, _ = grown(body, "FP32", 1)
    assert used <= bound_of(body, "FP32", 1) + COUNTING_ERROR_BYTES
    used, _ = grown(body, "BYTES", 1)
    assert used <= bound_of(body, "BYTES", 1) + COUNTING_ERROR_BYTES


@needs_proc
@pytest.mark.parametrize("datatype", ["FP32", "FP64"])
@pytest.mark.parametrize("number", FLOATS)
def test_floats_take_no_more_than_the_bound_and_a_third_of_what_objects_would(
    number: bytes, datatype: str, grown: Grown
) -> None:
    body = wrap(datatype, [N], items(number))
    used, kind = grown(body, datatype, 1)
    assert kind == "InferRequest"
    bound = bound_of(body, datatype, 1)
    assert used <= bound + COUNTING_ERROR_BYTES
    assert bound <= json_cost_bytes(body) / 3


@needs_proc
@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        ("FP32", [N // 4, 4], items(items(b"0.12345", 4), N // 4)),
        ("FP64", [N // 4, 2, 2], items(items(items(b"0.12345", 2), 2), N // 4)),
        ("FP64", [N, 1], items(b"[0.1]")),
        ("FP64", [1, N], b"[" + items(b"0.1") + b"]"),
        ("INT64", [N], items(b"1")),
        ("UINT8", [N], items(b"255")),
        ("BOOL", [N], items(b"true")),
        ("BYTES", [N], items(b'"some text"')),
        ("BYTES", [N], items('"日本"'.encode())),
    ],
)
def test_valid_data_takes_no_more_than_the_bound(datatype: str, shape: list[int], data: bytes, grown: Grown) -> None:
    body = wrap(datatype, shape, data)
    used, kind = grown(body, datatype, len(shape))
    assert kind == "InferRequest"
    assert used <= bound_of(body, datatype, len(shape)) + COUNTING_ERROR_BYTES


#: Large documents that are cut, most of them wrong: datatype, shape, data.
CUT: dict[str, tuple[str, list[int], Callable[[], bytes]]] = {
    "short numbers": ("UINT8", [5 * N], lambda: items(b"1", 5 * N)),
    "short numbers as wide ones": ("FP64", [5 * N], lambda: items(b"1", 5 * N)),
    "beyond 64 bits": ("FP64", [N], lambda: items(b"9" * 20)),
    "beyond 64 bits among short ones": ("FP64", [5 * N], lambda: items(b"1," * 4999 + b"9" * 20, N // 1000)),
    "wrong at the end": ("INT8", [5 * N], lambda: items(b"1", 5 * N)[:-2] + b"true]"),
    "wrong everywhere": ("UINT8", [5 * N], lambda: items(b"-1", 5 * N)),
    "no numbers": ("FP32", [5 * N], lambda: items(b"null", 5 * N)),
    "not JSON": ("FP32", [5 * N], lambda: items(b"1", 5 * N)[:-2] + b"x]"),
    "not JSON everywhere": ("FP32", [5 * N], lambda: items(b"1x", 5 * N)),
    "empty lists that fit": ("FP32", [5 * N, 0], lambda: items(b"[]", 5 * N)),
    "empty lists for lists of one": ("FP32", [5 * N, 1], lambda: items(b"[]", 5 * N)),
    "deep lists behind numbers": ("FP32", [N], lambda: items(b"1")[:-1] + (b"," + b"[" * 1020) * 10 + b"]"),
    "more sizes than lists": ("INT8", [5 * N] + [1] * 30, lambda: b"[" * 31 + items(b"1", 5 * N)[1:-1] + b"]" * 31),
    "a shape that is larger": ("FP64", [1 << 40], lambda: items(b"1", 5 * N)),
    "lists of a shape that is larger": ("FP64", [1 << 40, 1], lambda: items(b"[1]", 5 * N)),
    "other lists at the end": ("FP64", [5 * N, 1], lambda: items(b"[1]", 5 * N)[:-4] + b"[[1]]]"),
}


@needs_proc
@pytest.mark.parametrize("name", CUT)
def test_lists_that_are_read_in_pieces_take_no_more_than_the_bound(name: str, grown: Grown) -> None:
    datatype, shape, data = CUT[name]
    body = wrap(datatype, shape, data())
    used, _ = grown(body, datatype, len(shape))
    bound = bound_of(body, datatype, len(shape))
    assert used <= bound + COUNTING_ERROR_BYTES
    assert bound < json_cost_bytes(body) / 3  # it was cut


@needs_proc
@pytest.mark.parametrize(
    "text",
    ["", "a", "ab", "é", "日", "😀", "a sentence of some length", "a" * 300, "a" * 299 + "😀"],
)
def test_raw_texts_take_no_more_than_the_bound(text: str, grown: Grown) -> None:
    encoded = text.encode()
    count = max(20_000, N // (len(encoded) // 8 + 1))
    raw = (len(encoded).to_bytes(4, "little") + encoded) * count
    entry = {"name": "x", "datatype": "BYTES", "shape": [count]}
    head = orjson.dumps({"inputs": [entry | {"parameters": {"binary_data_size": len(raw)}}]})
    used, kind = grown(head + raw, "BYTES", 1, len(head))
    assert kind == "InferRequest"
    spec = {"x": TensorSpec("x", "BYTES", (-1,))}
    bound = foresee(head + raw, header_length=len(head), inputs=spec).cost_bytes
    assert used <= bound + COUNTING_ERROR_BYTES


def placed(body: bytes, header_length: int, shift: int) -> memoryview:
    """Returns the body where what follows its JSON begins `shift` bytes behind a multiple of 64."""
    room = np.empty(len(body) + 128, np.uint8)
    begin = (shift - header_length - room.ctypes.data) % 64
    room[begin : begin + len(body)] = np.frombuffer(body, np.uint8)
    return memoryview(room)[begin : begin + len(body)]


def raw_body(*tensors: tuple[str, int]) -> tuple[bytes, int, dict[str, TensorSpec]]:
    """Returns a body with raw tensors of zeros, its JSON's length, and inputs that it fits."""
    entries, raw = [], b""
    for index, (datatype, count) in enumerate(tensors):
        size = count * DTYPES[datatype].itemsize
        entry = {"name": f"x{index}", "datatype": datatype, "shape": [count]}
        entries.append(entry | {"parameters": {"binary_data_size": size}})
        raw += bytes(size)
    text = orjson.dumps({"inputs": entries})
    specs = {f"x{index}": TensorSpec(f"x{index}", datatype, (-1,)) for index, (datatype, _) in enumerate(tensors)}
    return text + raw, len(text), specs


def copies(body: memoryview, header_length: int, specs: dict[str, TensorSpec]) -> tuple[int, int]:
    """Returns what decoding copies of the raw tensors, and the bound for that; checks the whole bound too."""
    peaks = []
    for _ in range(3):  # threads that other tests have left allocate too, now and then
        tracemalloc.start()
        try:
            decoded = decode_request(
                body, header_length=header_length, inputs=specs, outputs={}, max_decoded_bytes=1 << 40
            )
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    peak = min(peaks)
    cost = foresee(body, header_length=header_length, inputs=specs).cost_bytes
    assert peak <= cost
    where = np.frombuffer(body, np.uint8)
    copied = sum(array.nbytes for array in decoded.feeds.values() if not np.shares_memory(array, where))
    text = body[:header_length]
    return copied, cost - foresee(text, header_length=header_length, inputs=specs).cost_bytes - header_length


@pytest.mark.parametrize("shift", [0, 1, 2, 4, 6, 8])
@pytest.mark.parametrize("datatype", sorted(DTYPES.keys() - {"BYTES"}))
def test_raw_numbers_cost_their_copy_where_they_lie_unaligned_and_else_nothing(datatype: str, shift: int) -> None:
    body, header_length, specs = raw_body((datatype, N))
    copied, bound = copies(placed(body, header_length, shift), header_length, specs)
    assert copied == bound == (N * DTYPES[datatype].itemsize if shift % DTYPES[datatype].itemsize else 0)


@pytest.mark.parametrize("shift", [0, 4])
def test_the_only_tensor_that_is_all_of_a_body_costs_its_copy_where_it_lies_unaligned(shift: int) -> None:
    copied, bound = copies(placed(bytes(8 * N), 0, shift), 0, {"x": TensorSpec("x", "INT64", (-1,))})
    assert copied == bound == (8 * N if shift else 0)


@pytest.mark.parametrize("shift", [0, 2])
def test_tensors_of_one_width_are_copied_all_or_none(shift: int) -> None:
    body, header_length, specs = raw_body(("FP32", 5), ("INT32", N), ("FP32", 0), ("UINT32", 3))
    copied, bound = copies(placed(body, header_length, shift), header_length, specs)
    assert copied == bound == (4 * (N + 8) if shift else 0)


@pytest.mark.parametrize("tensors", [[("FP32", 3), ("INT64", N)], [("INT64", N), ("FP32", 3)], [("BOOL", 1)] * 3])
@pytest.mark.parametrize("shift", range(9))
def test_no_tensors_of_different_widths_are_copied_beyond_the_bound(tensors: list[tuple[str, int]], shift: int) -> None:
    body, header_length, specs = raw_body(*tensors)
    copied, bound = copies(placed(body, header_length, shift), header_length, specs)
    assert copied <= bound <= len(body) - header_length


def test_a_wrong_byte_among_many_is_found_within_the_bound() -> None:
    body, header_length, specs = raw_body(("BOOL", 10 * N))
    wrong = body[:-2] + b"\x02\x03"
    cost = foresee(wrong, header_length=header_length, inputs=specs).cost_bytes
    assert cost < N
    peaks = []
    for _ in range(3):  # other threads of the process may allocate something meanwhile
        tracemalloc.start()
        try:
            with pytest.raises(InvalidTensor, match=f"byte 2 as element {10 * N - 2}"):
                decode_request(wrong, header_length=header_length, inputs=specs, outputs={}, max_decoded_bytes=cost)
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    peak = min(peaks)
    assert peak <= cost


@pytest.mark.parametrize("length", [0, 1, 100, (1 << 14) - 1, 1 << 14, (1 << 16) + 1, 200_000])
def test_the_counts_are_those_of_every_chunk(length: int) -> None:
    """One value, list, object, string and key more costs the same at any length of the text."""
    padding = b" " * length
    fixed = json_cost_bytes(padding) - 2 * length
    assert json_cost_bytes(b"") == fixed
    for part in (b",", b"[", b"{", b'""', b":"):
        added = json_cost_bytes(part) - fixed
        assert added == json_cost_bytes(padding + part) - fixed - 2 * length
