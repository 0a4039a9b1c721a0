"""`modelhost serve`: the host behind HTTP."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from modelhost.cli.options import settings_options
from modelhost.config import ServerSettings, Settings, load_settings
from modelhost.errors import ConfigError
from modelhost.precedence import go_first
from modelhost.threads import cores, take_short_turns

if TYPE_CHECKING:
    import uvicorn

    from modelhost.api.app import ModelHostApp
    from modelhost.api.drain import DrainingServer, Shared
    from modelhost.host import Host
    from modelhost.security.keys import Key
    from modelhost.security.ring import KeyRing

log = logging.getLogger("modelhost")


@click.command("serve", short_help="Serve a directory of models over HTTP.")
@settings_options
@click.option("--host", help="Address to listen on. [default: 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="Port to listen on; 0 takes a free one. [default: 8080]")
@click.option("--grpc-port", type=click.IntRange(0, 65535), help="Port for gRPC; 0 takes a free one. [default: none]")
@click.option("--workers", metavar="N", help='Processes that serve together; "auto": one for each core. [default: 1]')
@click.option(
    "--memory-limit", metavar="SIZE", help='Upper bound such as "256MB"; only lowers the kernel\'s own limit.'
)
@click.option("--insecure", is_flag=True, default=None, help="Ask for no keys where other machines can reach the host.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), help="Least level to log. [default: info]"
)
@click.option("--log-format", type=click.Choice(["text", "json"]), help="Form of the log. [default: text]")
def command(
    models_directory: Path | None,
    config_file: Path | None,
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    workers: str | None,
    memory_limit: str | None,
    insecure: bool | None,
    log_level: str | None,
    log_format: str | None,
) -> None:
    """Serve a directory of models over HTTP (the V2 inference protocol).

    Nothing is loaded at start: a model loads when the first request for it arrives, and leaves when
    memory is needed for others. Every setting can be given in modelhost.toml, as MODELHOST_SECTION_KEY
    in the environment, or (the common ones) here; flags win.

    \b
    Examples:
      modelhost serve --models models
      modelhost serve --models models --memory-limit 256MB --port 9000
      MODELHOST_MEMORY_WARNING=66% modelhost serve --config modelhost.toml
    """
    # First of all, before anything allocates tensors: see modelhost/memory/allocator.py.
    from modelhost.memory import allocator

    allocator.configure()
    take_short_turns()
    from modelhost.api import logs
    from modelhost.security.ring import take_from
    from modelhost.security.secret import take_secret

    keys, secret = take_from(os.environ), take_secret(os.environ)  # before there is a child that would inherit them
    flags = {
        "models.directory": models_directory,
        "server.host": host,
        "server.port": port,
        "server.grpc_port": grpc_port,
        "server.workers": workers,
        "memory.limit": memory_limit,
        "security.insecure": insecure,
        "logging.level": log_level,
        "logging.format": log_format,
    }

    def read() -> Settings:
        return load_settings(file=config_file, flags=flags)

    settings = read()
    logs.configure(settings.logging)
    _serve(settings, keys, secret, read)


def _serve(settings: Settings, fixed_keys: tuple[Key, ...], secret: bytes | None, read: Callable[[], Settings]) -> None:
    from modelhost.security.exposure import check_exposure
    from modelhost.security.ring import KeyRing
    from modelhost.security.tls import check_tls

    check_tls(settings.server.tls_certificate, settings.server.tls_key)
    keys = KeyRing.of(settings.security, fixed_keys)
    check_exposure(settings.server.host, has_keys=keys is not None, insecure=settings.security.insecure)

    listener = _bind(settings.server.host, settings.server.port)
    workers = cores() if settings.server.workers == "auto" else settings.server.workers
    if workers == 1:
        Service(settings, listener, keys=keys, alerts_secret=secret, read=read).run()
    else:
        from modelhost.cli.serve_together import serve_together

        serve_together(workers, settings, listener, partial(Service, keys=keys, alerts_secret=secret, read=read))


class Service:
    """The host behind its server. Of several processes the parent makes it, so that they share what it is made of."""

    def __init__(
        self,
        settings: Settings,
        listener: socket.socket,
        shared: Shared | None = None,
        *,
        keys: KeyRing | None,
        alerts_secret: bytes | None,
        read: Callable[[], Settings],
    ) -> None:
        """`shared`: as one of several processes. Begins no thread. Raises ConfigError."""
        from modelhost.api.app import create_app
        from modelhost.api.drain import DrainingServer
        from modelhost.host import Host

        self._settings, self._listener, self._shared, self._read = settings, listener, shared, read
        self._announces = True
        self._failure: list[ConfigError] = []
        self._host = host = Host(settings, siblings=None if shared is None else shared.seat)
        if keys is not None:
            host.on_reload.append(keys.reload)
        self._app = create_app(
            host, keys=keys, alerts_secret=alerts_secret, on_ready=self._announce, on_failure=self._fail
        )
        self._server = DrainingServer(
            _server_config(self._app, _connections(settings.server), settings.server),
            host,
            self._app,
            leave=lambda: os._exit(0),
            on_hangup=lambda: _reload(host, read),
            shared=shared,
        )

    def run(self, *, announces: bool = True) -> None:
        """Serves until a signal ends it; `announces`: says where. Raises ConfigError."""
        self._announces = announces
        if self._settings.models.preload and announces:
            url = _shown(self._host, self._listener)[1]
            log.info("%s answers; it is ready when models.preload is loaded", url)
        for number in (signal.SIGTERM, signal.SIGINT):  # until the server does so itself
            signal.signal(number, self._server.handle_exit)
        try:
            self._server.run(sockets=[self._listener] if self._shared is None else [])
        except SystemExit:
            if not self._failure:
                raise
        finally:
            self._listener.close()
        if self._failure:
            raise self._failure[0]

    def refresh(self) -> None:
        """Takes over what a reload does, before it runs; what cannot be read stays, as those say that do run."""
        try:
            for call in self._host.on_reload:
                call()
            read = self._read()
        except ConfigError:
            return
        settings = self._host.settings
        memory = settings.memory.model_copy(update={"limit": read.memory.limit})
        self._host.settings = settings.model_copy(update={"models": read.models, "memory": memory})

    def _fail(self, error: ConfigError) -> None:
        self._failure.append(error)
        self._server.end()
        # The server would print the framework's traceback for what is one line of ours.
        logging.getLogger("uvicorn.error").disabled = True

    async def _announce(self) -> None:
        await _announce(self._host, self._server, self._listener, self._app, is_quiet=not self._announces)


def _server_config(app: ModelHostApp, connections: int, server: ServerSettings) -> uvicorn.Config:
    from modelhost.api.drain import server_config

    return server_config(
        app,
        connections,
        loop=_loop(),
        log_level="warning",
        ssl_certfile=server.tls_certificate,
        ssl_keyfile=server.tls_key,
        timeout_keep_alive=server.keep_alive,  # which it only adds up
    )


async def _reload(host: Host, read: Callable[[], Settings]) -> None:
    """Reads again what may change while the host runs; the rest of the settings stays as it is until the next start."""
    log.info("reloading keys, memory.limit, models' options and settings, and the models' directory")
    settings = None
    try:
        settings = await host.pool.catalog.on_disk(read)
    except ConfigError as error:
        log.error("the settings stay as they are: %s", error)
    await host.reload(settings)


def _connections(server: ServerSettings) -> int:
    """Returns how many connections there may be; says so where that is fewer than the settings have."""
    from modelhost.api.connections import connection_limit

    limit = connection_limit(server)
    if limit < server.max_connections:
        log.warning(
            "%d connections at most, not %d (server.max_connections): this process may not open more files (ulimit -n)",
            limit,
            server.max_connections,
        )
    return limit


def _loop() -> str:
    return "asyncio" if sys.platform == "win32" else "uvloop"


def _bind(address: str, port: int) -> socket.socket:
    """Takes the port before anything is loaded, so that a port in use is the first thing said."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((address, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"cannot listen on {address}:{port}: {error.strerror}; choose another with --port") from None
    listener.set_inheritable(True)
    return listener


async def _announce(
    host: Host, server: DrainingServer, listener: socket.socket, app: ModelHostApp, *, is_quiet: bool
) -> None:
    """Says where the host listens once it really does."""
    gc.freeze()  # what start-up has made stays; collections need not look at it again
    go_first()  # not before: ONNX Runtime's own threads, where it has some, were started here and are as usual
    if is_quiet:
        return
    while not server.started:  # noqa: ASYNC110 - uvicorn has a flag for it and no event
        await asyncio.sleep(0.005)
    shown, url = _shown(host, listener)
    rpc_address = None if app.grpc_port is None else f"{shown}:{app.grpc_port}"
    for line in await _welcome(host, url, rpc_address, has_keys=app.guard is not None):
        click.echo(line)


def _shown(host: Host, listener: socket.socket) -> tuple[str, str]:
    """Returns address and URL, as a request can go to them."""
    address, port = listener.getsockname()[:2]
    address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address, address)
    shown = f"[{address}]" if ":" in address else address
    scheme = "http" if host.settings.server.tls_certificate is None else "https"
    return shown, f"{scheme}://{shown}:{port}"


async def _welcome(host: Host, url: str, rpc_address: str | None, *, has_keys: bool) -> list[str]:
    from modelhost.cli.example import example_curl
    from modelhost.units import format_bytes

    info, catalog = host.memory.memory_info(), host.pool.catalog
    broken = f", {len(catalog.problems)} broken (see the log)" if catalog.problems else ""
    lines = [
        f"modelhost listens on {url}",
        *([] if rpc_address is None else [f"  gRPC:    {rpc_address}"]),
        f"  models:  {len(catalog.names)} in {host.settings.models.directory}{broken}; loaded on demand",
        f"  memory:  limit {format_bytes(info.limit_bytes)} ({info.limit_source}), "
        f"baseline {format_bytes(info.baseline_bytes)}, warning {format_bytes(info.warning_bytes)}, "
        f"critical {format_bytes(info.critical_bytes)}",
    ]
    curl = 'curl -s -H "Authorization: Bearer $MODELHOST_API_KEY"' if has_keys else "curl -s"
    example = await example_curl(host.pool, url, curl) or f"{curl} -X POST {url}/v2/repository/index"
    return [*lines, "Try it:", f"  {example}"]
