"""Message classes, made from the committed descriptors by protobuf's public interface.

Generated modules would be bound to the version of protobuf that made them. The pool of descriptors is
our own: a client's modules in the same process describe messages of the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, Message
from google.protobuf.message_factory import GetMessageClass

from modelhost.errors import InvalidRequest

SERVICE: Final = "inference.GRPCInferenceService"

_POOL: Final = DescriptorPool()


def _add_files() -> None:
    described = FileDescriptorSet.FromString(resources.files(__package__).joinpath("inference.desc").read_bytes())
    for file in described.file:
        _POOL.AddSerializedFile(file.SerializeToString())


def message_class(name: str) -> Any:
    """Returns the class of the message `inference.NAME`; its fields are not known to type checkers."""
    return GetMessageClass(_POOL.FindMessageTypeByName(f"inference.{name}"))


_add_files()

#: Request and answer of each method.
METHODS: Final[Mapping[str, tuple[Any, Any]]] = {
    method.name: (message_class(method.input_type.name), message_class(method.output_type.name))
    for method in _POOL.FindServiceByName(SERVICE).methods
}
ModelInferRequest, ModelInferResponse = METHODS["ModelInfer"]
ModelStreamInferResponse: Final = METHODS["ModelStreamInfer"][1]
InferTensorContents: Final = message_class("InferTensorContents")


def parse(kind: Any, data: bytes) -> Any:
    """Returns the message in `data`. Raises InvalidRequest where there is none of this kind."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        reason = str(error)
    raise InvalidRequest(f"the request is no {kind.DESCRIPTOR.name} message: {reason}")


def plain_values(parameters: Mapping[str, Any]) -> dict[str, object]:
    """Returns the values of a map of parameters, None for those without one."""
    return {key: _plain(value) for key, value in parameters.items()}


def _plain(value: Message) -> object:
    chosen = value.WhichOneof("parameter_choice")
    return None if chosen is None else getattr(value, chosen)
