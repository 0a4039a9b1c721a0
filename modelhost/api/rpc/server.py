"""The gRPC server: on the host's event loop, beside HTTP, within the same bounds."""

from __future__ import annotations

import socket
from typing import Final

import grpc

from modelhost.api.accepting import reserve
from modelhost.api.access import Guard
from modelhost.api.access_log import AccessLog
from modelhost.api.connections import connection_limit
from modelhost.api.inference import Inference
from modelhost.api.rpc.access import CallLog, KeyCheck
from modelhost.api.rpc.calls import handlers
from modelhost.api.rpc.infer import InferCalls
from modelhost.api.rpc.messages import SERVICE
from modelhost.api.rpc.receiving import Receiving
from modelhost.api.together import Together
from modelhost.config import ServerSettings
from modelhost.errors import ConfigError
from modelhost.host import Host
from modelhost.security.tls import check_tls

#: A connection without a call leaves after this time; clients open another by themselves.
_IDLE_MS: Final = 300_000
#: A client that vanished without a word is noticed after these two: its calls end, and what they hold.
_PING_AFTER_MS: Final = 60_000
_PING_TIMEOUT_MS: Final = 20_000
#: What is under way when the host has drained was told to stop; streams that idle have nothing to wait for.
_STOP_S: Final = 0.5


class RpcServer:
    """Serves a host from `start` to `stop`. Its port is taken before, so that one in use is said at once.

    Of a host that is several processes each listens on the port, which their parent has taken, and the kernel deals
    connections out among them.
    """

    def __init__(
        self,
        host: Host,
        guard: Guard | None = None,
        access_log: AccessLog | None = None,
        together: Together | None = None,
    ) -> None:
        """Takes the port of `server.grpc_port`, where it is one process's. Raises ConfigError."""
        server = host.settings.server
        assert server.grpc_port is not None
        self._host, self._together = host, together
        self._interceptors = (
            *(() if access_log is None else (CallLog(access_log),)),
            *(() if guard is None else (KeyCheck(guard),)),
        )
        self._reserved = reserve_port(server) if together is None else None
        self.port: int = server.grpc_port if self._reserved is None else self._reserved.getsockname()[1]
        self._server: grpc.aio.Server | None = None
        self._calls: InferCalls | None = None

    @property
    def under_way(self) -> int:
        """Inference requests that have no answer yet."""
        return 0 if self._calls is None else self._calls.under_way

    async def start(self, inference: Inference) -> None:
        """Listens. The host is open. Raises ConfigError."""
        host, settings = self._host, self._host.settings.server
        memory = host.memory.memory_info()
        room_bytes = (memory.limit_bytes - memory.critical_bytes) // host.siblings.seats
        receiving = Receiving(room_bytes=room_bytes, max_bytes=host.budgets.request_bytes)
        self._calls = calls = InferCalls(inference, receiving)
        server = grpc.aio.server(
            interceptors=self._interceptors,
            handlers=(grpc.method_handlers_generic_handler(SERVICE, handlers(host, calls, receiving, self._together)),),
            options=(
                # Else a second host on this port would get half of the calls.
                ("grpc.so_reuseport", int(self._together is not None)),
                # Windows stay at 64 KB until a message is asked for; the library would widen them to megabytes.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.max_receive_message_length", host.budgets.request_bytes),  # decompressed, too
                ("grpc.max_send_message_length", -1),  # answers are bounded by what may be held
                ("grpc.max_allowed_incoming_connections", connection_limit(settings)),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.keepalive_time_ms", _PING_AFTER_MS),
                ("grpc.keepalive_timeout_ms", _PING_TIMEOUT_MS),
            ),
            maximum_concurrent_rpcs=settings.max_connections,
        )
        address = f"[{settings.host}]" if ":" in settings.host else settings.host
        self.release_port()
        try:
            if settings.tls_certificate is None:
                server.add_insecure_port(f"{address}:{self.port}")
            else:
                server.add_secure_port(f"{address}:{self.port}", _credentials(settings))
        except RuntimeError as error:
            raise ConfigError(f"cannot listen on {address}:{self.port} for gRPC: {error}") from None
        await server.start()
        self._server = server

    async def stop(self) -> None:
        """Takes no more calls, and waits for those under way: up to `server.drain_timeout`, unless the host has
        drained before."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(_STOP_S if self._host.is_draining else self._host.settings.server.drain_timeout)

    def release_port(self) -> None:
        """Gives the port back where it never came to `start`; harmless otherwise."""
        if self._reserved is not None:
            self._reserved.close()


def _credentials(settings: ServerSettings) -> grpc.ServerCredentials:
    """Reads certificate and key. Raises ConfigError."""
    certificate, key = settings.tls_certificate, settings.tls_key
    check_tls(certificate, key)
    assert certificate is not None
    chain = certificate.read_bytes()
    return grpc.ssl_server_credentials(((chain if key is None else key.read_bytes(), chain),))


def reserve_port(settings: ServerSettings, *, is_shared: bool = False) -> socket.socket:
    """Binds the port of `server.grpc_port` without listening on it. Raises ConfigError."""
    assert settings.grpc_port is not None
    try:
        return reserve(settings.host, settings.grpc_port, is_shared=is_shared)
    except OSError as error:
        text = (
            f"cannot listen on {settings.host}:{settings.grpc_port} for gRPC: {error.strerror}; "
            "choose another with --grpc-port"
        )
        raise ConfigError(text) from None
