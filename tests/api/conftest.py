"""Hosts behind HTTP for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import models_for_tests as build
import pytest
from onnx import TensorProto
from rpc_client import RpcClient, client_of
from served import MODELS, Served, fake_host, serve, settings

from modelhost.host import Host
from modelhost.runtime.fake import FakeScript

ServeFake: TypeAlias = Callable[..., Served]


@pytest.fixture
def serve_fake(tmp_path: Path) -> Iterator[ServeFake]:
    """Returns a function that serves fake models: `serve_fake({"a": FakeScript()}, pool={...})`."""
    with ExitStack() as stack:

        def serve_scripts(scripts: dict[str, FakeScript], **sections: dict[str, Any]) -> Served:
            served = stack.enter_context(serve(fake_host(tmp_path, scripts, **sections)))
            stack.callback(_end_all, scripts)  # before the server stops, which waits for what is under way
            return served

        yield serve_scripts


def _end_all(scripts: dict[str, FakeScript]) -> None:
    for script in scripts.values():
        for event in (script.load_may_end, script.run_may_end, script.close_may_end):
            if event is not None:
                event.set()


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of models for ONNX Runtime, good and broken."""
    directory = tmp_path_factory.mktemp("zoo")
    for name in ("digits", "wine", "iris_petals"):
        (directory / name).symlink_to(MODELS / name)
    for version in ("1", "2", "10"):
        build.save(build.add_constant(float(version)), directory, "add", version)
    build.save(build.add_constant(5), directory, "größe & co")
    build.save(build.reciprocal(), directory, "reciprocal")
    build.save(build.two_inputs(), directory, "sum")
    build.save(build.identity(TensorProto.FLOAT16), directory, "half")
    for name, kind in (("int64", TensorProto.INT64), ("bool", TensorProto.BOOL), ("text", TensorProto.STRING)):
        build.save(build.identity(kind), directory, name)
    build.save(build.heavy(20), directory, "heavy")
    build.save(build.triples(), directory, "triples")
    build.save(build.unknown_operator(), directory, "unknown_operator")
    (directory / "torn" / "1").mkdir(parents=True)
    (directory / "torn" / "1" / "model.onnx").write_bytes((MODELS / "wine" / "1" / "model.onnx").read_bytes()[:20_000])
    (directory / "empty").mkdir()
    return directory


@pytest.fixture(scope="session")
def ort(zoo: Path) -> Iterator[Served]:
    """The zoo behind ONNX Runtime, for all tests of the session: they leave it as they found it."""
    sections = {"server": {"grpc_port": 0}, "memory": {"limit": 1 << 30}, "pool": {"failure_backoff_s": 0.001}}
    with serve(Host(settings(zoo, **sections))) as served:
        yield served


@pytest.fixture(scope="session")
def short_tempered(zoo: Path) -> Iterator[Served]:
    """The zoo behind a server that waits a moment only for what is to come."""
    with serve(Host(settings(zoo, server={"read_timeout": "50ms"}, memory={"limit": 1 << 30}))) as served:
        yield served


@pytest.fixture
def rpc(ort: Served) -> Iterator[RpcClient]:
    """A gRPC client of the zoo."""
    with client_of(ort) as client:
        yield client


@pytest.fixture
def rpc_fake(serve_fake: ServeFake) -> Iterator[Callable[..., RpcClient]]:
    """Returns a function that serves fake models over gRPC, and a client of it."""
    with ExitStack() as stack:

        def connect(scripts: dict[str, FakeScript], **sections: dict[str, Any]) -> RpcClient:
            server = {"grpc_port": 0} | sections.pop("server", {})
            return stack.enter_context(client_of(serve_fake(scripts, server=server, **sections)))

        yield connect
