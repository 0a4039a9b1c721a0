"""TLS over HTTP and gRPC, with a certificate of the test's own: the short cut works there as it does without."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from rpc_client import fake_raw
from served import Served, fake_host, fake_request, serve
from test_access import bearer, write_keys
from wire import ROOMY, Wire, counting, infer, infer_binary, nothing_held, numbers, quick_script

from modelhost.api.rpc.messages import METHODS, SERVICE
from modelhost.errors import ConfigError
from modelhost.security.tls import check_tls

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="openssl, which makes the certificate, is missing"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tls")


@pytest.fixture(scope="module")
def certificate(folder: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and `key.pem` beside it."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-days",
        "2",
    ]
    command += ["-subj", "/CN=modelhost test", "-addext", "subjectAltName=IP:127.0.0.1"]
    command += ["-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem")]
    subprocess.run(command, check=True, capture_output=True, timeout=30)
    return folder / "cert.pem"


@pytest.fixture(scope="module")
def key(folder: Path) -> str:
    return write_keys(folder / ".keys", "infer")["infer"]


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def served(request: pytest.FixtureRequest, folder: Path, certificate: Path, key: str) -> Iterator[Served]:
    files = {"tls_certificate": certificate, "tls_key": folder / "key.pem"}
    sections = {"server": {"grpc_port": 0} | files | ROOMY["server"], "security": {"keys_file": folder / ".keys"}}
    host = fake_host(folder / "models", {"a": quick_script()}, **sections)
    with serve(
        host, loop=request.param, ssl_certfile=certificate, ssl_keyfile=folder / "key.pem", timeout_graceful_shutdown=5
    ) as served:
        yield served


@contextmanager
def secure_wire(served: Served, certificate: Path) -> Iterator[Wire]:
    context = ssl.create_default_context(cafile=certificate)
    with served.connect() as plain, context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
        yield Wire(connection)


def test_the_short_cut_answers_over_tls(served: Served, certificate: Path, key: str) -> None:
    with counting(served) as ways, secure_wire(served, certificate) as connection:
        for value in range(4):
            connection.send(infer("a", bearer(key), value=value))
            assert connection.must().data == [2 * value]
        connection.send(b"".join(infer("a", bearer(key), value=value) for value in range(3)))
        assert [connection.must().data for _ in range(3)] == [[0], [2], [4]]
        assert (ways.socket, ways.application) == (5, 2)  # what is pipelined is the application's
        connection.send(infer("a"))
        assert connection.must().status == 401
    nothing_held(served)


@pytest.mark.parametrize("pieces", [1, 7])
def test_large_bodies_are_received_in_place_over_tls(served: Served, certificate: Path, key: str, pieces: int) -> None:
    values = numbers(2 << 20)
    sent = infer_binary("a", values, bearer(key)) + infer("a", bearer(key), value=3)  # and one right behind it
    with secure_wire(served, certificate) as connection:
        size = -(-len(sent) // pieces)
        connection.send(*(sent[begin : begin + size] for begin in range(0, len(sent), size)))
        np.testing.assert_array_equal(connection.must().raw, values * 2)
        assert connection.must().data == [6]
    nothing_held(served)


def test_a_client_that_knows_the_certificate_is_served_and_no_other(
    served: Served, certificate: Path, key: str
) -> None:
    url, headers = f"https://127.0.0.1:{served.port}", {"Authorization": f"Bearer {key}"}
    with httpx.Client(verify=ssl.create_default_context(cafile=certificate), trust_env=False) as client:
        assert client.get(f"{url}/v2/health/ready").status_code == 200
        answer = client.post(f"{url}/v2/models/a/infer", json=fake_request(), headers=headers)
        assert answer.json()["outputs"][0]["data"] == [2, 4]
    with httpx.Client(trust_env=False) as client, pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        client.get(f"{url}/v2/health/ready")


def test_who_speaks_no_tls_is_told_nothing(served: Served) -> None:
    with served.connect() as connection:
        connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: a\r\n\r\n")
        try:
            received = b"".join(iter(lambda: connection.recv(1000), b""))
        except ConnectionResetError:
            received = b""
    assert b"HTTP" not in received


def test_old_protocols_are_refused(served: Served, certificate: Path) -> None:
    context = ssl.create_default_context(cafile=certificate)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with served.connect() as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname="127.0.0.1")


def test_grpc_is_served_over_tls_only(served: Served, certificate: Path, key: str) -> None:
    address, metadata = f"127.0.0.1:{served.app.grpc_port}", (("authorization", f"Bearer {key}"),)
    credentials = grpc.ssl_channel_credentials(certificate.read_bytes())
    request, kind = fake_raw("a").SerializeToString(), METHODS["ModelInfer"][1]
    with grpc.secure_channel(address, credentials) as channel:
        call = channel.unary_unary(f"/{SERVICE}/ModelInfer", response_deserializer=kind.FromString)
        assert call(request, metadata=metadata, timeout=10).model_name == "a"
        with pytest.raises(grpc.RpcError) as caught:
            call(request, timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(f"/{SERVICE}/ModelInfer")(request, metadata=metadata, timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


# --- what is wrong with the files ---------------------------------------------------------------------------


def test_what_is_no_certificate_and_its_key_is_said(folder: Path, certificate: Path) -> None:
    check_tls(None, None)
    check_tls(certificate, folder / "key.pem")
    both, other, locked = folder / "both.pem", folder / "other.pem", folder / "locked.pem"
    both.write_bytes(certificate.read_bytes() + (folder / "key.pem").read_bytes())
    check_tls(both, None)
    make = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(other)]
    subprocess.run(make, check=True, capture_output=True, timeout=30)
    lock = ["openssl", "ec", "-in", str(folder / "key.pem"), "-aes256", "-passout", "pass:secret", "-out", str(locked)]
    subprocess.run(lock, check=True, capture_output=True, timeout=30)
    for files, said in (
        ((None, other), "tls_key is set and server.tls_certificate is not"),
        ((certificate, None), "are no certificate and its key"),
        ((certificate, other), "KEY_VALUES_MISMATCH"),
        ((other, other), "are no certificate and its key"),
        ((folder / "nothing.pem", other), "nothing.pem, of server.tls_*: No such file"),
        ((certificate, locked), "tls_key is encrypted"),
    ):
        with pytest.raises(ConfigError) as caught:
            check_tls(*files)
        assert said in str(caught.value)


def test_a_handshake_that_never_comes_holds_nobody_up(served: Served, certificate: Path, key: str) -> None:
    with served.connect() as idle:
        assert isinstance(idle, socket.socket)
        with secure_wire(served, certificate) as connection:
            connection.send(infer("a", bearer(key)))
            assert connection.must().data == [2]
