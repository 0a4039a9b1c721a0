"""Large JSON requests, whose lists of numbers are read in pieces, against the way of small ones: no difference."""

from __future__ import annotations

import gc
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sizes import examples

from modelhost.api.codec import InferRequest, decode_request, large_json, list_marks, list_pieces, number_list
from modelhost.api.codec.list_marks import ListMarks
from modelhost.errors import InvalidRequest, InvalidTensor, ModelHostError
from modelhost.tensors import DTYPES, TensorSpec

OUTPUTS = {"y": TensorSpec("y", "FP32", (-1,))}
NUMERIC = ["FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64"]
#: Long enough for any number's text, so that a list is not left to the other way for it.
PIECES = [64, 100, 257, list_pieces.PIECE_BYTES]

Outcome = tuple[object, ...]


def infer(body: bytes | memoryview, specs: dict[str, TensorSpec], header: int | None = None) -> InferRequest:
    return decode_request(body, header_length=header, inputs=specs, outputs=OUTPUTS, max_decoded_bytes=None)


@contextmanager
def small_way() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "LARGE_TEXT_BYTES", 1 << 60)
        yield


@contextmanager
def large_way(piece: int) -> Iterator[list[bool]]:
    """Any document is a large one, read in pieces of that size; yields whether each was cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(large_json, "LARGE_TEXT_BYTES", 0)
        for module in (large_json, list_pieces, number_list):
            patch.setattr(module, "PIECE_BYTES", piece)
        patch.setattr(list_pieces, "_VALUES_BYTES", max(8, piece // 8))
        patch.setattr(list_marks, "_BLOCK_BYTES", piece // 4)
        cuts: list[bool] = []
        real = large_json.cut

        def spy(text: bytes | memoryview) -> large_json.CutRequest | None:
            found = real(text)
            cuts.append(found is not None)
            return found

        patch.setattr("modelhost.api.codec.cost.cut", spy)
        yield cuts


def outcome_of(body: bytes | memoryview, specs: dict[str, TensorSpec], header: int | None) -> Outcome:
    try:
        request = infer(body, specs, header)
    except ModelHostError as error:
        assert large_json._MARK not in str(error)
        element = re.search(r"as element (\d+)", str(error))
        return (type(error), element and int(element[1]))
    arrays = {name: (array.dtype, array.shape, array.tobytes()) for name, array in request.feeds.items()}
    return (request.id, request.outputs, request.timeout_s, list(arrays.items()))


def compare(
    body: bytes | memoryview, specs: dict[str, TensorSpec], *, header: int | None = None, piece: int = 64
) -> tuple[Outcome, bool]:
    """Decodes both ways, checks that they agree, and returns the outcome and whether the document was cut."""
    with small_way():
        small = outcome_of(body, specs, header)
    with large_way(piece) as cuts:
        large = outcome_of(body, specs, header)
    if len(small) == 2:
        assert large[0] is small[0], f"{large} for {small}: {bytes(body)!r}"
        assert len(large) == 2
        assert None in (small[1], large[1]) or small[1] == large[1]
    else:
        assert large == small
    return small, any(cuts)


def spec(datatype: str, rank: int, name: str = "x") -> dict[str, TensorSpec]:
    return {name: TensorSpec(name, datatype, (-1,) * rank)}


def wrap(datatype: str, shape: list[int], data: bytes, name: str = "x") -> bytes:
    head = orjson.dumps({"name": name, "datatype": datatype, "shape": shape})[:-1]
    return b'{"inputs":[' + head + b',"data":' + data + b"}]}"


# --- documents -----------------------------------------------------------------------------------

WHITE = st.text(" \t\r\n", max_size=3).map(str.encode)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
FLOAT_TEXTS = st.one_of(
    FLOATS.map(lambda value: json.dumps(value).encode()),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda value: b"%.9g" % value),
    st.integers(-(2**70), 2**70).map(b"%d".__mod__),
    st.sampled_from(
        b"-0 -0.0 0 0e0 1E5 1e+5 -1.5e-3 5e-324 2.2250738585072011e-308 1e-400 1.4e-45 7e-46 3.4028235e38 "
        b"3.4028235677973366e38 1.7976931348623157e308 9007199254740993 18446744073709551615 18446744073709551616 "
        b"-9223372036854775809 0.1000000000000000055511151231257827021181583404541015625".split()
    ),
)


def edges(datatype: str) -> list[int]:
    info = np.iinfo(DTYPES[datatype])
    return [info.min, info.max, 0, 1, info.max - 1]


def numbers(datatype: str) -> st.SearchStrategy[bytes]:
    if datatype.startswith("FP"):
        return FLOAT_TEXTS
    info = np.iinfo(DTYPES[datatype])
    whole = st.sampled_from(edges(datatype)) | st.integers(int(info.min), int(info.max))
    return whole.map(b"%d".__mod__) | st.just(b"-0")


WRONG = st.sampled_from(
    b'true false null "a" "[1,2]" {} [] [1] 1.5 -1 300 1e39 1e400 -1e999 NaN Infinity -Infinity 0x10 01 +1 .5 1. 1e - '
    b"18446744073709551616 99999999999999999999 \xff \xc3\xa9 \x00 1\x0c2 // ".split()
)


@st.composite
def lists(draw: st.DrawFn, datatype: str, shape: list[int], rights: int = 9) -> bytes:
    """Text of an array, nested to some level and flat below, with white space; some elements may be wrong."""
    depth = draw(st.integers(1, max(1, len(shape))))
    sizes = [*shape[: depth - 1], int(np.prod(shape[depth - 1 :]))]
    element = numbers(datatype)
    is_wrong = draw(st.booleans()) and rights < 9
    gaps = draw(st.lists(WHITE, min_size=1, max_size=7))

    def text(level: int, place: int) -> bytes:
        white = gaps[place % len(gaps)]
        if level == len(sizes):
            wrong = is_wrong and draw(st.integers(0, rights)) == 0
            return white + draw(WRONG if wrong else element) + white
        parts = [text(level + 1, place * 3 + index) for index in range(sizes[level])]
        return white + b"[" + b",".join(parts) + gaps[-1] + b"]" + white

    return text(0, 0).strip()


@st.composite
def documents(draw: st.DrawFn, rights: int = 9) -> tuple[bytes, dict[str, TensorSpec], int | None]:
    """A request with one to three inputs in JSON or as raw bytes, its keys in any order; mostly a right one."""
    entries, raw, specs = [], b"", {}
    for name in draw(st.permutations(["x", "w", 'a"data'])).__getitem__(slice(draw(st.integers(1, 3)))):
        datatype = draw(st.sampled_from(NUMERIC))
        shape = draw(st.lists(st.integers(0, 5), max_size=4))
        specs[name] = TensorSpec(name, datatype, (-1,) * len(shape))
        fields = [
            (b'"name"', orjson.dumps(name)),
            (b'"datatype"', orjson.dumps(datatype)),
            (b'"shape"', orjson.dumps(shape)),
        ]
        if draw(st.integers(0, 3)):
            fields.append((b'"data"', draw(lists(datatype, shape, rights))))
        else:
            size = int(np.prod(shape)) * DTYPES[datatype].itemsize
            fields.append((b'"parameters"', b'{"binary_data_size":%d}' % size))
            raw += bytes(size)
        fields += draw(st.lists(EXTRA, max_size=1))
        gap, after = draw(WHITE), draw(WHITE)
        entries.append(
            b"{"
            + b",".join(gap + key + after + b":" + gap + v + after for key, v in draw(st.permutations(fields)))
            + b"}"
        )
    members = [
        b'"inputs":[' + b",".join(entries) + b"]",
        *(b":".join(pair) for pair in draw(st.lists(EXTRA, max_size=1))),
    ]
    text = b"{" + b",".join(draw(st.permutations(members))) + b"}" + draw(WHITE)
    return text + raw, specs, len(text) if raw or draw(st.booleans()) else None


#: Members that nothing looks at, or that look like others.
EXTRA = st.tuples(
    st.sampled_from([b'"more"', b'"a\\"data"', b'"data"', b'"\\u0064ata"', b'"id"', b'"parameters"']),
    st.sampled_from(
        [
            b"[1,2]",
            b"[[1],[2,3]]",
            b'["data",[1]]',
            b'{"data":[1,2]}',
            b'{"data":[1,,2]}',
            b'"\\"data\\":[1,2]"',
            b'"data\\":[1,2],\\""',
            b"[1,,2]",
            b"null",
            b"5",
            b'"text"',
        ]
    ),
)


@given(documents(), st.sampled_from(PIECES))
@examples(400)
def test_requests_that_mostly_fit(drawn: tuple[bytes, dict[str, TensorSpec], int | None], piece: int) -> None:
    body, specs, header = drawn
    compare(body, specs, header=header, piece=piece)


@given(documents(rights=4), st.sampled_from(PIECES))
@examples(400)
def test_requests_with_wrong_elements(drawn: tuple[bytes, dict[str, TensorSpec], int | None], piece: int) -> None:
    body, specs, header = drawn
    compare(memoryview(body), specs, header=header, piece=piece)


EDIT = st.tuples(
    st.floats(0, 1),
    st.integers(0, 3),
    st.sampled_from([*(bytes([code]) for code in b'[],,[]0-.eE+ \t"{}:\\tn\xff'), b"", b",[", b"],", b"[]", b"]["]),
)


@given(documents(rights=30), st.lists(EDIT, min_size=1, max_size=3), st.sampled_from(PIECES))
@examples(500)
def test_requests_with_some_bytes_changed(
    drawn: tuple[bytes, dict[str, TensorSpec], int | None], edits: list[tuple[float, int, bytes]], piece: int
) -> None:
    body, specs, _ = drawn
    for where, removed, added in edits:
        at = int(where * len(body))
        body = body[:at] + added + body[at + removed :]
    compare(body, specs, piece=piece)


LIST_EDIT = st.tuples(
    st.floats(0, 1),
    st.integers(0, 3),
    st.sampled_from([*b"[ ] , ,0 - . e n \xff ,[ ], [] ][ ,, 1e39 99".split(b" "), b" "]),
)


@given(
    st.data(),
    st.sampled_from(["FP32", "INT8", "UINT64"]),
    st.lists(st.integers(0, 5), max_size=4),
    st.lists(LIST_EDIT, min_size=1, max_size=3),
    st.sampled_from(PIECES),
)
@examples(1000)
def test_lists_with_some_bytes_changed(
    data: st.DataObject, datatype: str, shape: list[int], edits: list[tuple[float, int, bytes]], piece: int
) -> None:
    text = data.draw(lists(datatype, shape))[1:-1]
    for where, removed, added in edits:
        at = int(where * len(text))
        text = text[:at] + added + text[at + removed :]
    compare(wrap(datatype, shape, b"[" + text + b"]"), spec(datatype, len(shape)), piece=piece)


@given(st.data(), st.sampled_from(NUMERIC), st.lists(st.integers(1, 5), min_size=1, max_size=4))
@examples(300)
def test_right_lists_are_cut_and_give_the_same_bits(data: st.DataObject, datatype: str, shape: list[int]) -> None:
    body = wrap(datatype, shape, data.draw(lists(datatype, shape)))
    outcome, was_cut = compare(body, spec(datatype, len(shape)), piece=257)
    assert was_cut
    assert len(outcome) == 4 or outcome[0] is InvalidTensor  # floats that FP32 has not


STRUCTURES = st.text("[[]],,1 ", max_size=24).map(str.encode)


@given(STRUCTURES, st.lists(st.integers(0, 3), max_size=3), st.sampled_from([64, 1 << 16]))
@examples(1500)
@example(b"[]1,[2]", [2, 1], 64)
@example(b"1[,2]", [2], 64)
@example(b"[1,2]3", [3], 64)
@example(b"1],[2", [2], 64)
@example(b"1]", [1], 64)
@example(b"1,2,3,4,5,6,7,8,9]", [9], 64)
@example(b"[1,2,3,4,5,6,7,8,9]]", [1, 9], 64)
@example(b"[1],[]", [2, 1], 64)
@example(b"[],[]", [2, 0], 64)
@example(b"[],[]", [2, 0, 7], 64)
@example(b"[[],[]]", [1, 2, 0], 64)
@example(b"1,2", [0], 64)
@example(b"[[1],[2]]", [1, 2], 64)
@example(b"5", [], 64)
@example(b"[5]", [], 64)
@example(b"1,2,", [2], 64)
@example(b"1,,2", [2], 64)
@example(b"[1,2],3", [3], 64)
@example(b"[1,2],[3]", [3], 64)
def test_brackets_and_commas_in_odd_places(inner: bytes, shape: list[int], piece: int) -> None:
    compare(wrap("INT8", shape, b"[" + inner + b"]"), spec("INT8", len(shape)), piece=piece)


@pytest.mark.parametrize("tail", [b"", b" ", b"\n ", b",", b", ", b" ,1", b"1"])
def test_missing_values_are_missed_wherever_a_piece_ends(tail: bytes) -> None:
    for count in range(20, 90):
        for shape in ([count], [count + 1], [1, count], [0]):
            inner = b"1," * count + tail
            data = b"[[%b]]" % inner if len(shape) == 2 else b"[%b]" % inner
            compare(wrap("INT8", shape, data), spec("INT8", len(shape)))


@pytest.mark.parametrize(
    "body",
    [
        wrap("FP32", [2], b"[1,2]") + b" ",
        wrap("FP32", [2], b"[1,2]") + b"x",
        wrap("FP32", [2], b"[1,2]")[:-1],
        wrap("FP32", [2], b"[1,2]")[:-3],
        wrap("FP32", [2], b"[1,2]")[:-4],
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,2',
        b'"data":[1,2]',
        b'[{"data":[1,2]}]',
        b'{"inputs":{"data":[1,2]}}',
        b'{"inputs":[[{"data":[1,2]}]]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,2],"data":[3,4]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,,2],"data":[3,4]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[3,4],"data":"[1,2]"}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[3,4],"data":null}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"a\\"data":[1,,2],"data":[3,4]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[3,4],"parameters":{"data":[[1]]}}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[3,4],"parameters":{"data":[1 2]}}]}',
        b'{"data":[1,2,],"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[3,4]}]}',
        b'{"data":[1,2],"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[3,4]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[3,4]}],"inputs":[]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"\\u0064ata":[3,4]}]}',
        b'{"inputs":[{"data":[1,2],"name":"x","datatype":"FP32","shape":[3]}],"outputs":[{"name":"y","data":[1]}]}',
        b'{"inputs":[{"data":[1,x],"name":"x","datatype":"INT8","shape":[2]}]}',
        b'{"inputs":[{"data":[1,x],"name":"nobody","datatype":"FP32","shape":[2]}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,2],"id":"\xff"}]}',
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,"\xff"]}]}',
        *(wrap("FP32", [2], data) for data in (b"null", b"5", b'"[1,2]"', b'{"data":[1,2]}', b"[]", b"[[]]", b"true")),
        wrap("FP32", [2], b"[0." + b"1" * 70_000 + b",2]"),
        wrap("FP32", [2], b"[" + b"1" * 70_000 + b",2]"),
        wrap("FP32", [2], b"[1," + b" " * 70_000 + b"2]"),
        wrap("FP32", [2], b"[1,2" + b" " * 70_000 + b"]"),
        wrap("FP32", [2], b"[1,2]" + b" " * 70_000),
        wrap("FP32", [2], b" " * 70_000 + b"[1,2]"),
        wrap("FP32", [1 << 40], b"[1,2]"),
        wrap("FP32", [1 << 62, 1 << 62], b"[[1],[2]]"),
        *(wrap("FP32", [1], b"[" * depth + b"1" + b"]" * depth) for depth in (1020, 1021, 1022, 1023, 1024, 5000)),
        *(wrap("FP32", [1], b"[" * depth + b"1") for depth in (1, 2, 1021, 1022)),
        wrap("FP32", [1], b"[" + b"[1,[2,3]]," * 100 + b"4]"),
    ],
)
@pytest.mark.parametrize("piece", PIECES)
def test_odd_documents(body: bytes, piece: int) -> None:
    for datatype in ("FP32", "INT8"):
        compare(body, spec(datatype, 1), piece=piece)
    compare(body, spec("FP32", 2), piece=piece)


@pytest.mark.parametrize(
    ("datatype", "data", "element"),
    [
        ("INT8", b"300,1,1.5,2", 2),  # types come before ranges
        ("INT8", b"1,2,300,-200", 2),
        ("UINT64", b"1,-1,18446744073709551616,1", 2),
        ("FP32", b"1,1e39,true,2", 2),
        ("FP32", b"1,2,1e39,3", 2),
        ("FP32", b"1,340282366920938463463374607431768211456,1e39,3", 1),
    ],
)
def test_the_same_element_is_named_in_whatever_piece_it_is(datatype: str, data: bytes, element: int) -> None:
    filler = b"1," * 500
    for elements, before in ((filler + data, 500), (data + b"," + filler[:-1], 0)):
        outcome, was_cut = compare(wrap(datatype, [504], b"[" + elements + b"]"), spec(datatype, 1))
        assert was_cut
        assert outcome == (InvalidTensor, before + element)


def test_what_nested_lists_are_like_is_said() -> None:
    with large_way(64), pytest.raises(InvalidTensor, match=r"nested as shape \[3, 2\] says.*about element 2 on"):
        infer(wrap("FP32", [3, 2], b"[[1,2],[3],[4,5,6]]"), spec("FP32", 2))
    with large_way(64), pytest.raises(InvalidTensor, match=r"3 elements for shape \[3\].*4 elements"):
        infer(wrap("FP32", [3], b"[1,2,3,4]"), spec("FP32", 1))
    with large_way(64), pytest.raises(InvalidRequest, match=r"not valid JSON: .*at byte 61 or soon behind it"):
        infer(wrap("FP32", [3], b"[1,2,x]"), spec("FP32", 1))


def test_the_mark_is_nothing_that_a_client_could_write() -> None:
    """A known one could put one input's numbers into another; it is random, and no answer tells it."""
    assert re.fullmatch("[0-9a-f]{16}", large_json._MARK)
    body = wrap("FP32", [2], b"[1,2]").replace(b'"inputs":[', b'"id":"0:0","inputs":[')
    found = large_json.cut(body)
    assert found is not None
    assert large_json._MARK.encode() in found.rest
    assert large_json._MARK not in repr(found.document)


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=5),
    st.integers(1, 40),
    st.integers(1, 64),
)
def test_marks_are_those_of_the_lists_that_a_shape_says(sizes: list[int], block: int, step: int) -> None:
    def text(level: int) -> str:
        return "" if level == len(sizes) else "[" + ",".join([text(level + 1)] * sizes[level]) + "]"

    wanted = text(0).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(list_marks, "_BLOCK_BYTES", block)
        marks = ListMarks(sizes)
        assert all(marks.follow(wanted[at : at + step]) for at in range(0, len(wanted), step))
        assert marks.is_over()
        assert marks.elements == wanted.count(b",")
        assert not marks.follow(b"[")
        for other in (wanted[:-1] + b",", wanted[:-1] + b"[", wanted + b"]"):
            assert not ListMarks(sizes).follow(other)
        begun = ListMarks(sizes)
        assert begun.follow(wanted[:-1])
        assert not begun.is_over()


# --- time ----------------------------------------------------------------------------------------

MB = 1 << 20
#: Rank and text of about so many bytes.
HOSTILE: dict[str, tuple[int, Callable[[int], bytes]]] = {
    "deep nesting": (1, lambda size: wrap("FP32", [1], b"[" * size)),
    "deep nesting that ends": (1, lambda size: wrap("FP32", [1], b"[" * (size // 2) + b"]" * (size // 2))),
    "empty lists": (1, lambda size: wrap("FP32", [size // 3], b"[" + b"[]," * (size // 3 - 1) + b"[]]")),
    "empty lists that fit": (2, lambda size: wrap("FP32", [size // 3, 0], b"[" + b"[]," * (size // 3 - 1) + b"[]]")),
    "empty lists as lists of one": (
        2,
        lambda size: wrap("FP32", [size // 3, 1], b"[" + b"[]," * (size // 3 - 1) + b"[]]"),
    ),
    "lists of one": (2, lambda size: wrap("FP32", [size // 4, 2], b"[" + b"[1]," * (size // 4 - 1) + b"[1]]")),
    "long number": (1, lambda size: wrap("FP32", [1], b"[0." + b"1" * size + b"]")),
    "long number behind others": (
        1,
        lambda size: wrap("FP32", [40_000], b"[" + b"1," * 39_999 + b"0." + b"1" * size + b"]"),
    ),
    "no closing bracket": (1, lambda size: wrap("FP32", [size // 2], b"[" + b"1," * (size // 2))[:-3]),
    "no brace": (1, lambda size: b'{"inputs":[{"data":[' + b"1," * (size // 2)),
    "many inputs": (1, lambda size: b'{"inputs":[' + b'{"name":"x","data":[1,2]},' * (size // 26) + b"{}]}"),
    "beginnings": (1, lambda size: b'"data":[' * (size // 8)),
    "beginnings with gaps": (1, lambda size: (b'"data"' + b" " * 1000 + b":" + b" " * 1000) * (size // 2007)),
    "beginnings of gaps": (1, lambda size: b'"data"' + b" " * size),
    "white space": (1, lambda size: wrap("FP32", [2], b"[1," + b" " * size + b"2]")),
    "wrong at the end": (1, lambda size: wrap("FP32", [size // 2], b"[" + b"1," * (size // 2 - 1) + b"true]")),
    "wrong everywhere": (1, lambda size: wrap("FP32", [size // 5], b"[" + b"1e99," * (size // 5 - 1) + b"1e99]")),
    "beyond 64 bits": (1, lambda size: wrap("FP32", [size // 21], b"[" + NINES * (size // 21 - 1) + NINES[:-1] + b"]")),
    "not JSON at the end": (1, lambda size: wrap("FP32", [size // 2], b"[" + b"1," * (size // 2 - 1) + b"x]")),
}
NINES = b"9" * 20 + b","


def decoding_s(body: bytes, specs: dict[str, TensorSpec]) -> float:
    """Returns processor seconds of this thread, the best of three; without collections, which take as long as there
    are objects of other tests."""
    best = float("inf")
    gc.disable()
    try:
        for _ in range(3):
            begun = time.thread_time()
            outcome_of(body, specs, None)
            best = min(best, time.thread_time() - begun)
    finally:
        gc.enable()
    return best


@pytest.mark.parametrize("name", HOSTILE)
def test_time_grows_with_the_text_and_no_faster(name: str) -> None:
    rank, text = HOSTILE[name]
    small, large = (decoding_s(text(size), spec("FP32", rank)) for size in (MB, 4 * MB))
    # Four times the text: four times the time, and some for what no longer fits the cache; sixteen times is a square's.
    assert large < 10 * max(small, 0.002)


@pytest.mark.parametrize(
    ("datatype", "number"), [("FP32", b"1e99"), ("INT8", b"300"), ("UINT64", b"-1"), ("UINT8", b"-1")]
)
def test_of_numbers_out_of_range_only_the_first_ones_become_values(
    datatype: str, number: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list of nothing else, of 8 MB, would take a tenth of a second more to refuse."""
    looked_at: list[int] = []
    values = number_list._values

    def counted(piece: list_pieces.Piece) -> list[object]:
        found = values(piece)
        looked_at.append(len(found))
        return found

    monkeypatch.setattr(number_list, "_values", counted)
    count = 200_000
    body = wrap(datatype, [count], b"[" + (number + b",") * (count - 1) + number + b"]")
    outcome = outcome_of(body, spec(datatype, 1), None)
    assert outcome == (InvalidTensor, 0)
    assert 0 < sum(looked_at) <= 3 * list_pieces.PIECE_BYTES // len(number)
