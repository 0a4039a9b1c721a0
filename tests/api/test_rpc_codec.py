"""Messages without a server: the descriptors, every datatype both ways, damage, and what decoding takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import grpc_tools
import numpy as np
import probes
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from rpc_client import raw, typed

import modelhost
from modelhost.api.codec import OutputRequest
from modelhost.api.rpc.decode import CONTENTS, decode_infer, infer_cost_bytes
from modelhost.api.rpc.encode import MessageEncoding
from modelhost.api.rpc.messages import METHODS, ModelInferRequest, ModelInferResponse, ModelStreamInferResponse
from modelhost.api.rpc.wire import parse_cost_bytes, take_apart
from modelhost.errors import InvalidRequest, InvalidTensor, UnrepresentableOutput
from modelhost.pool import ModelKey
from modelhost.tensors import DTYPES, TensorSpec

SOURCE = Path(modelhost.__file__).parent / "api" / "rpc"
OUTPUTS = {"y": TensorSpec("y", "FP32", (-1,))}


def decode(request: Any, spec: TensorSpec) -> Any:
    message = request.SerializeToString()
    return decode_infer(message, take_apart(message), inputs={spec.name: spec}, outputs=OUTPUTS)


def decoded(request: Any, datatype: str, shape: tuple[int, ...] = (-1,)) -> np.ndarray:
    return decode(request, TensorSpec("x", datatype, shape)).feeds["x"]


def sample(datatype: str) -> np.ndarray:
    """Both ends of the datatype's range."""
    dtype = DTYPES[datatype]
    if datatype == "BYTES":
        return np.array(["", "größe", "a" * 200], np.object_)
    if dtype.kind == "b":
        return np.array([True, False, True])
    if datatype == "BF16":
        return np.array([0x0000, 0x3F80, 0xFF7F, 0x7F80], np.uint16).view(dtype)
    if dtype.kind in "iu":
        info = np.iinfo(dtype.name)
        return np.array([info.min, 0, 1, info.max], dtype)
    info = np.finfo(dtype.name)
    return np.array([info.min, 0, 0.5, info.max, np.inf], dtype)


def elements(values: np.ndarray) -> list[Any]:
    return [text.encode() for text in values] if values.dtype == np.object_ else values.tolist()


# --- the descriptors -----------------------------------------------------------------------------------------


def test_the_committed_descriptors_are_those_of_the_source(tmp_path: Path) -> None:
    made = tmp_path / "made.desc"
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", f"-I{SOURCE}"),
            *(f"--descriptor_set_out={made}", "inference.proto"),
        ],
        check=True,
        cwd=Path(grpc_tools.__file__).parent,
    )
    committed = resources.files("modelhost.api.rpc").joinpath("inference.desc").read_bytes()
    assert FileDescriptorSet.FromString(committed) == FileDescriptorSet.FromString(made.read_bytes())


def test_numbers_that_clients_have_compiled_in() -> None:
    """Those of the Open Inference Protocol and of Triton; a change here is a change of the wire."""

    def numbers(kind: Any) -> dict[str, int]:
        return {field.name: field.number for field in kind.DESCRIPTOR.fields}

    assert numbers(ModelInferRequest) == {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "inputs": 5,
        "outputs": 6,
        "raw_input_contents": 7,
    }
    assert numbers(ModelInferResponse) == {
        "model_name": 1,
        "model_version": 2,
        "id": 3,
        "parameters": 4,
        "outputs": 5,
        "raw_output_contents": 6,
    }
    config = METHODS["ModelConfig"][1].DESCRIPTOR.fields_by_name["config"].message_type
    assert {field.name: field.number for field in config.fields} == {
        "name": 1,
        "platform": 2,
        "version_policy": 3,
        "max_batch_size": 4,
        "input": 5,
        "output": 6,
        "dynamic_batching": 11,
        "backend": 17,
        "model_transaction_policy": 19,
    }
    assert {
        name: config.file.enum_types_by_name["DataType"].values_by_name[name].number
        for name in ("TYPE_BOOL", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_STRING")
    } == {"TYPE_BOOL": 1, "TYPE_INT64": 9, "TYPE_FP16": 10, "TYPE_FP32": 11, "TYPE_STRING": 13}


# --- every datatype ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("datatype", CONTENTS)
def test_typed_contents_of_every_datatype_both_ways(datatype: str) -> None:
    values = sample(datatype)
    field = CONTENTS[datatype]
    array = decoded(typed("m", field, elements(values), datatype=datatype), datatype)
    assert array.dtype == values.dtype
    assert array.tolist() == values.tolist()

    answer = ModelInferResponse.FromString(encoded(datatype, values, binary=False))
    assert answer.outputs[0].datatype == datatype
    assert list(getattr(answer.outputs[0].contents, field)) == elements(values)


@pytest.mark.parametrize("datatype", [name for name in DTYPES if name != "BYTES"])
@pytest.mark.parametrize("padding", range(4))
def test_raw_tensors_of_every_datatype_both_ways_at_any_alignment(datatype: str, padding: int) -> None:
    values = sample(datatype).reshape(1, -1) if datatype != "BOOL" else np.array([[True, False]])
    request = raw("m" * (padding + 1), datatype, values)
    array = decoded(request, datatype, (1, -1))
    assert (array.dtype, array.shape) == (values.dtype, values.shape)
    assert array.flags.aligned
    assert array.tobytes() == values.tobytes()

    answer = ModelInferResponse.FromString(encoded(datatype, values.T, binary=True))  # not in order
    assert list(answer.outputs[0].shape) == list(values.T.shape)
    assert list(answer.raw_output_contents) == [values.T.tobytes()]


def encoded(datatype: str, *arrays: np.ndarray, binary: bool, is_stream: bool = False) -> bytes:
    outputs = [
        (OutputRequest(f"y{index}", binary), TensorSpec(f"y{index}", datatype, None), array)
        for index, array in enumerate(arrays)
    ]
    return MessageEncoding("seven", is_stream=is_stream).encode(ModelKey("m", "3"), outputs)


def test_raw_texts_are_framed() -> None:
    answer = ModelInferResponse.FromString(encoded("BYTES", np.array(["ab", ""], np.object_), binary=True))
    assert list(answer.raw_output_contents) == [b"\x02\x00\x00\x00ab\x00\x00\x00\x00"]


def test_an_output_without_a_typed_form_makes_the_whole_answer_raw() -> None:
    one, half = np.array([1], np.float32), np.array([2], np.float16)
    answer = ModelInferResponse.FromString(encoded("FP32", one, half, binary=False))
    assert list(answer.raw_output_contents) == [one.tobytes(), half.tobytes()]
    assert not any(output.HasField("contents") for output in answer.outputs)


def test_an_output_without_a_datatype_is_said() -> None:
    with pytest.raises(UnrepresentableOutput, match=r"'y0'.*complex128"):
        encoded("FP32", np.array([1j]), binary=True)
    with pytest.raises(UnrepresentableOutput, match="element 1 has no UTF-8 form"):
        encoded("BYTES", np.array(["a", "\ud800"], np.object_), binary=False)


def test_an_answer_in_a_stream_is_the_same_message_within_another() -> None:
    values = np.zeros(1000, np.float32)
    streamed = ModelStreamInferResponse.FromString(encoded("FP32", values, binary=True, is_stream=True))
    assert streamed.infer_response.parameters["triton_final_response"].bool_param
    streamed.infer_response.ClearField("parameters")
    assert streamed.infer_response == ModelInferResponse.FromString(encoded("FP32", values, binary=True))


# --- what a request may say ----------------------------------------------------------------------------------


def test_outputs_parameters_and_time() -> None:
    request = raw("m", "FP32", np.array([1], np.float32))
    request.parameters["timeout"].uint64_param = 2_500_000
    request.parameters["binary_data_output"].bool_param = False
    request.parameters["anything"].string_param = "else"
    request.outputs.add(name="y").parameters["binary_data"].bool_param = False
    found = decode(request, TensorSpec("x", "FP32", (-1,)))
    assert (found.timeout_s, found.outputs) == (2.5, (OutputRequest("y", True),))


def test_fields_in_any_order_and_unknown_ones() -> None:
    request = raw("m", "FP32", np.array([1, 2], np.float32))
    data = request.raw_input_contents[0]
    request.ClearField("raw_input_contents")
    unknown = b"\xa2\x06\x02ab" + b"\xad\x06\x00\x00\x00\x00" + b"\xb1\x06" + bytes(8) + b"\xb8\x06\x05"
    message = b"\x3a\x08" + data + unknown + request.SerializeToString()
    parts = take_apart(message)
    found = decode_infer(message, parts, inputs={"x": TensorSpec("x", "FP32", (-1,))}, outputs=OUTPUTS)
    assert parts.model_name == "m"
    assert found.feeds["x"].tolist() == [1, 2]


def test_numbers_that_are_not_packed() -> None:
    """An older encoding, which parsers have to read."""
    contents = b"\x10\x05" + b"\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"  # int_contents 5 and -1
    tensor = b"\x0a\x01x\x12\x05INT32\x1a\x01\x02\x2a" + bytes([len(contents)]) + contents
    message = b"\x0a\x01m\x2a" + bytes([len(tensor)]) + tensor
    found = decode_infer(message, take_apart(message), inputs={"x": TensorSpec("x", "INT32", (-1,))}, outputs=OUTPUTS)
    assert found.feeds["x"].tolist() == [5, -1]


@pytest.mark.parametrize(
    ("datatype", "field", "values", "got"),
    [
        ("INT8", "int_contents", [1, 200], "200 as element 1"),
        ("INT16", "int_contents", [-40_000], "-40000 as element 0"),
        ("UINT8", "uint_contents", [0, 256], "256 as element 1"),
        ("FP32", "fp64_contents", [1.0], "fp64_contents"),
        ("INT64", "int_contents", [1], "int_contents"),
        ("FP16", "fp32_contents", [1.0], "contents"),
        ("BYTES", "bytes_contents", [b"a", b"\xff"], "element 1 with invalid start byte at its byte 0"),
    ],
)
def test_contents_that_do_not_fit_are_named(datatype: str, field: str, values: list[Any], got: str) -> None:
    with pytest.raises(InvalidTensor) as caught:
        decoded(typed("m", field, values, datatype=datatype), datatype)
    assert caught.value.got == got


def test_counts_and_shapes_are_held_against_each_other() -> None:
    with pytest.raises(InvalidTensor, match=r"expected 3 elements for shape \[3\], got 2 elements"):
        decoded(typed("m", "fp32_contents", [1, 2], datatype="FP32", shape=[3]), "FP32")
    with pytest.raises(InvalidTensor, match="got 0 elements"):
        decoded(typed("m", "fp32_contents", [], datatype="FP32", shape=[1 << 62]), "FP32")
    with pytest.raises(InvalidTensor, match="sizes of 0 or more"):
        decoded(typed("m", "fp32_contents", [], datatype="FP32", shape=[-1]), "FP32")
    with pytest.raises(InvalidTensor, match="at most 32 sizes"):
        decode(typed("m", "fp32_contents", [1], datatype="FP32", shape=[1] * 33), TensorSpec("x", "FP32", None))
    request = raw("m", "FP32", np.zeros(2, np.float32))
    request.raw_input_contents[0] += b"x"
    with pytest.raises(InvalidTensor, match="expected 8 bytes"):
        decoded(request, "FP32")


def test_requests_that_contradict_themselves() -> None:
    request = raw("m", "FP32", np.zeros(1, np.float32))
    request.inputs[0].contents.fp32_contents.append(1)
    with pytest.raises(InvalidTensor, match="both of them"):
        decoded(request, "FP32")
    request = raw("m", "FP32", np.zeros(1, np.float32))
    request.raw_input_contents.append(b"")
    with pytest.raises(InvalidRequest, match="one for each of the 1 inputs, got 2"):
        decoded(request, "FP32")
    request = raw("m", "FP32", np.zeros(1, np.float32))
    request.inputs.append(request.inputs[0])
    with pytest.raises(InvalidRequest, match="input 'x' is given twice"):
        decoded(request, "FP32")
    request = raw("m", "FP32", np.zeros(1, np.float32))
    request.outputs.add(name="z")
    with pytest.raises(InvalidRequest, match="unknown output 'z'"):
        decoded(request, "FP32")
    request = raw("m", "FP32", np.zeros(1, np.float32))
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(InvalidRequest, match="'shared_memory_region' of input 'x' is not supported"):
        decoded(request, "FP32")


def test_every_cut_and_every_flipped_byte_is_an_answer_or_an_error_of_ours() -> None:
    message = raw("m", "FP32", np.zeros(3, np.float32)).SerializeToString()
    spec = TensorSpec("x", "FP32", (-1,))
    damaged = [message[:cut] for cut in range(len(message))]
    damaged += [
        message[:at] + bytes([message[at] ^ flip]) + message[at + 1 :]
        for at in range(len(message))
        for flip in (1, 7, 128)
    ]
    refused = 0
    for data in damaged:
        try:
            decode_infer(data, take_apart(data), inputs={"x": spec}, outputs=OUTPUTS)
        except InvalidRequest:
            refused += 1
    assert refused > len(message)


# --- what it takes -------------------------------------------------------------------------------------------

#: The bound for decoding the message in the file, and by how much the process really grew.
PROBE = """
from modelhost.api.rpc.decode import decode_infer, infer_cost_bytes
from modelhost.api.rpc.messages import ModelInferRequest
from modelhost.api.rpc.wire import take_apart
from modelhost.errors import ModelHostError
from modelhost.tensors import TensorSpec
from modelhost.testing.running import read_status

def decode(message, inputs):
    try:
        return decode_infer(message, take_apart(message), inputs=inputs, outputs={})
    except ModelHostError as error:
        return error

def measure(path, datatype):
    inputs = {"x": TensorSpec("x", datatype, (-1,))}
    warm = ModelInferRequest(model_name="m")
    warm.inputs.add(name="x", datatype="INT8", shape=[1]).contents.int_contents.append(1)
    decode(warm.SerializeToString(), inputs)
    with open(path, "rb", buffering=0) as file:
        message = file.read()
    try:
        bound = infer_cost_bytes(message, take_apart(message), inputs)
        before = read_status("VmRSS")
        result = decode(message, inputs)
        return bound, read_status("VmHWM") - before, type(result).__name__
    except ModelHostError as error:
        return 0, 0, type(error).__name__
"""

_N = 400_000


def _field(tag: int, data: bytes) -> bytes:
    size, prefix = len(data), bytearray([tag])
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(prefix) + bytes([size]) + data


def _input(datatype: str, contents: bytes, count: int = _N) -> bytes:
    shape = ModelInferRequest.InferInputTensor(shape=[count]).SerializeToString()
    return _field(0x2A, b"\x0a\x01x" + _field(0x12, datatype.encode()) + shape + _field(0x2A, contents))


MESSAGES = {
    "floats": ("FP32", _input("FP32", _field(0x32, bytes(4 * _N)))),
    "doubles": ("FP64", _input("FP64", _field(0x3A, bytes(8 * _N)))),
    "bools": ("BOOL", _input("BOOL", _field(0x0A, bytes(_N)))),
    "numbers of one byte": ("INT64", _input("INT64", _field(0x1A, bytes(_N)))),
    "numbers of ten bytes": ("INT64", _input("INT64", _field(0x1A, b"\xff" * 9 + b"\x01") * _N)),
    "numbers that are not packed": ("INT32", _input("INT32", b"\x10\x00" * _N)),
    "empty texts": ("BYTES", _input("BYTES", b"\x42\x00" * _N)),
    "short texts": ("BYTES", _input("BYTES", b"\x42\x05abcde" * _N)),
    "a wide text": ("BYTES", _input("BYTES", _field(0x42, "\U0001f600".encode() + b"a" * _N), 1)),
    "numbers behind a text": ("INT64", _input("INT64", b"\x42\x01a" + _field(0x1A, bytes(_N)))),
    "inputs that are empty": ("FP32", b"\x2a\x00" * 8000),
    "parameters that are empty": ("FP32", b"\x22\x00" * 8000),
    "parameters of an input": ("FP32", _field(0x2A, b"\x22\x00" * _N)),
    "a raw tensor": ("FP32", _field(0x2A, b"\x0a\x01x\x12\x04FP32\x1a\x03\x80\xb5\x18") + _field(0x3A, bytes(4 * _N))),
    "raw texts": (
        "BYTES",
        _field(0x2A, b"\x0a\x01x\x12\x05BYTES\x1a\x03\x80\xb5\x18") + _field(0x3A, (b"\x01" + bytes(3) + b"a") * _N),
    ),
    "too many fields": ("FP32", b"\x2a\x00" * _N),
}


@pytest.fixture(scope="module")
def probe() -> Iterator[Callable[..., list[str]]]:
    with probes.forking(probes.ONE_PROCESSOR + PROBE) as ask:
        yield ask


@pytest.mark.parametrize("name", MESSAGES)
def test_decoding_stays_within_its_bound(probe: Callable[..., list[str]], tmp_path: Path, name: str) -> None:
    datatype, rest = MESSAGES[name]
    file = tmp_path / "message"
    file.write_bytes(b"\x0a\x01m" + rest)
    bound, grown, outcome = probe(str(file), datatype)
    assert int(grown) <= int(bound) + (1 << 20)
    is_refused = outcome != "InferRequest"
    assert is_refused == (name.startswith(("numbers behind", "inputs", "parameters", "too many")))


@pytest.mark.parametrize("padding", range(8))
@pytest.mark.parametrize("widths", [("FP32",), ("INT64", "INT64"), ("FP32", "INT64")])
def test_raw_tensors_cost_their_copies_where_they_lie_unaligned_and_else_nothing(
    widths: tuple[str, ...], padding: int
) -> None:
    request = ModelInferRequest(model_name="m" * (padding + 1))
    for index, datatype in enumerate(widths):
        request.inputs.add(name=f"x{index}", datatype=datatype, shape=[1000])
        request.raw_input_contents.append(bytes(1000 * DTYPES[datatype].itemsize))
    message = request.SerializeToString()
    parts = take_apart(message)
    inputs = {f"x{index}": TensorSpec(f"x{index}", datatype, (-1,)) for index, datatype in enumerate(widths)}
    feeds = decode_infer(message, parts, inputs=inputs, outputs=OUTPUTS).feeds
    copied = sum(array.nbytes for array in feeds.values() if not np.shares_memory(array, np.frombuffer(message, "u1")))
    bound = infer_cost_bytes(message, parts, inputs) - parse_cost_bytes(message, parts)
    address = np.frombuffer(message, np.uint8).ctypes.data
    loose = [size for start, size in parts.raw if (address + start) % max(DTYPES[name].itemsize for name in widths)]
    assert copied <= bound == sum(loose)
    if len(set(widths)) == 1:
        assert copied == bound


def test_a_small_request_claims_little() -> None:
    message = raw("m", "FP32", np.zeros(4, np.float32)).SerializeToString()
    assert infer_cost_bytes(message, take_apart(message), {"x": TensorSpec("x", "FP32", (-1,))}) < 32 << 10
