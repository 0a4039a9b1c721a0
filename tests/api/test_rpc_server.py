"""The table of statuses, what an error may take on the wire, and how the server comes and goes."""

from __future__ import annotations

import json
import os
import queue
import socket
import subprocess
import sys
import threading
from pathlib import Path

import grpc
import pytest
from host_process import environment, running_host
from rpc_client import RpcClient, client_of, fake_raw, floats
from served import MODELS, fake_host, serve, settings
from test_refusals import _all_errors

import modelhost
from benchmarks.tracebacks import first_traceback
from modelhost import errors
from modelhost.api.rpc.errors import CODES, code_of, figures_of, known, shortened
from modelhost.api.rpc.server import RpcServer
from modelhost.errors import ConfigError
from modelhost.host import Host
from modelhost.runtime.fake import FakeScript

ROOT = str(Path(modelhost.__file__).parents[1])


# --- statuses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", _all_errors(), ids=lambda kind: kind.__name__)
def test_every_error_has_a_status_of_its_own_or_of_a_named_base(kind: type[errors.ModelHostError]) -> None:
    nearest = next(base for base in kind.__mro__ if base in CODES)
    assert nearest is not errors.ModelHostError or kind is errors.ModelHostError
    assert code_of(kind.__new__(kind)) is CODES[nearest]
    assert CODES[nearest] not in (grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN)


def test_no_memory_is_never_unavailable_which_clients_try_again_at_once() -> None:
    refusals = (errors.InsufficientMemory, errors.ActivationsFull, errors.NeverFits, errors.RunTooLarge)
    assert {code_of(kind.__new__(kind)) for kind in refusals} == {grpc.StatusCode.RESOURCE_EXHAUSTED}


def test_long_errors_are_cut_to_what_clients_accept() -> None:
    holders = tuple({"name": f"model-{number}", "committed_bytes": number} for number in range(1000))
    refusal = errors.InsufficientMemory("no room", needed_bytes=5, available_bytes=3, held_by=holders)
    figures = json.loads(figures_of(refusal))
    assert len(figures_of(refusal)) <= 3072
    assert (figures["needed_bytes"], figures["held_by"][:1]) == (5, [{"name": "model-0", "committed_bytes": 0}])
    broken = errors.ModelBroken("größe", "1", "ß" * 5000)
    assert json.loads(figures_of(broken)) == {"code": "model_broken"}
    assert len(shortened(str(broken)).encode()) * 3 <= 2048 + 9
    assert shortened("x" * 5000) == "x" * 2048 + "..."
    assert shortened("größe") == "größe"


def test_a_long_error_arrives(rpc_fake) -> None:
    client: RpcClient = rpc_fake({"a": FakeScript(load_error="ß" * 5000)})
    with pytest.raises(grpc.RpcError) as caught:
        client.infer(fake_raw())
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert caught.value.details().startswith("model 'a' version 1 cannot be loaded: ßß")


def test_a_known_error_holds_none_of_the_frames_that_it_went_through() -> None:
    def fail() -> None:
        raise errors.InvalidRequest("wrong")

    try:
        fail()
    except errors.ModelHostError as caught:
        assert caught.__traceback__ is not None
        found = known(caught, "ModelInfer")
    assert str(found) == "wrong"
    assert found.__traceback__ is None


# --- coming and going ----------------------------------------------------------------------------------------


def test_a_port_in_use_stops_the_start_with_its_name(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        host = Host(settings(tmp_path, server={"grpc_port": port}))
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port} for gRPC"):
            RpcServer(host)


def test_calls_under_way_are_answered_before_the_host_closes(tmp_path: Path) -> None:
    may_end = threading.Event()
    script = FakeScript(run_may_end=may_end)
    with serve(fake_host(tmp_path, {"a": script}, server={"grpc_port": 0})) as served, client_of(served) as client:
        running = client.later("ModelInfer", fake_raw())
        assert script.run_started.wait(10)
        served.server.end()
        served.eventually(lambda _: not client.call("ServerReady").ready)
        may_end.set()
        assert floats(running.result()) == [2, 4]
    assert script.closes == 1


def test_not_asked_for_nothing_is_imported() -> None:
    code = """
import asyncio, sys
from pathlib import Path
from modelhost.api.app import create_app
from modelhost.config import ModelsSettings, Settings
from modelhost.host import Host

async def main():
    app = create_app(Host(Settings(models=ModelsSettings(directory=Path(sys.argv[1])))))
    async with app.router.lifespan_context(app):
        print([name for name in ("grpc", "google.protobuf", "modelhost.api.rpc") if name in sys.modules])

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(MODELS)], capture_output=True, text=True, check=True, env=_environ()
    )
    assert done.stdout == "[]\n"


def test_asked_for_and_not_installed_is_one_line_that_says_what_to_do(tmp_path: Path) -> None:
    code = "import sys; sys.modules['grpc'] = None\nfrom modelhost.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "serve", "--models", str(MODELS), "--port", "0", "--grpc-port", "0"],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=_environ(),
    )
    assert done.returncode != 0
    assert done.stdout == ""
    assert "pip install 'modelhost[grpc]'" in done.stderr
    assert first_traceback(done.stderr) is None


def test_the_banner_says_where_grpc_is_answered(tmp_path: Path) -> None:
    with running_host(tmp_path, MODELS, "--grpc-port", "0") as host:
        assert host.banner[1].startswith("  gRPC:    127.0.0.1:")
        address = host.banner[1].split()[1]
        with grpc.insecure_channel(address) as channel:
            live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
            assert live(b"", timeout=10, wait_for_ready=True) == b"\x08\x01"
        assert host.stop() == 0
        assert first_traceback(host.log) is None


def _environ() -> dict[str, str]:
    return environment(PYTHONPATH=os.environ.get("PYTHONPATH", ROOT))


def test_calls_are_refused_while_the_host_drains_readiness_is_answered_and_what_has_begun_ends(rpc_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())
    client: RpcClient = rpc_fake({"a": script})
    begun = client.later("ModelInfer", fake_raw())
    assert script.run_started.wait(10)
    asked, answered = queue.SimpleQueue(), queue.SimpleQueue()  # type: ignore[var-annotated]
    stream = client.stream(iter(asked.get, None))
    client.served.server.end()
    client.served.eventually(lambda _: client.served.host.is_draining)
    assert not client.call("ServerReady").ready
    assert client.call("ServerLive").live
    for method, request in (("ModelInfer", fake_raw()), ("RepositoryModelLoad", {"model_name": "a"})):
        with pytest.raises(grpc.RpcError) as caught:
            client.infer(request) if method == "ModelInfer" else client.call(method, **request)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    asked.put(fake_raw())
    answered.put(next(stream))
    assert "shutting down" in answered.get().error_message
    assert script.run_may_end is not None
    script.run_may_end.set()
    assert floats(begun.result()) == [2, 4]
    with pytest.raises(grpc.RpcError):  # it would wait for ever
        next(stream)
    asked.put(None)
