"""The host and its server on a thread of this process, for what can only be measured from inside."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelhost.api.app import ModelHostApp, create_app
from modelhost.api.drain import DrainingServer, server_config
from modelhost.config import LoggingSettings, MemorySettings, ModelsSettings, ServerSettings, Settings
from modelhost.host import Host

_CONNECTIONS: Final = 400
_START_TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Embedded:
    """A server that answers."""

    app: ModelHostApp
    address: tuple[str, int]


def settings(models: Path, *, memory: Mapping[str, Any] | None = None) -> Settings:
    """Returns settings of a host that says little; `memory` overrides."""
    return Settings(
        server=ServerSettings(),
        memory=MemorySettings(**(memory or {})),
        logging=LoggingSettings(level="error"),
        models=ModelsSettings(directory=models),
    )


@contextlib.contextmanager
def serving(host: Host) -> Iterator[Embedded]:
    """Serves `host` on a free port until the scope ends. Raises TimeoutError where it does not come up."""
    listener = socket.create_server(("127.0.0.1", 0))
    ready = threading.Event()

    async def on_ready() -> None:
        ready.set()

    app = create_app(host, on_ready=on_ready)
    server = DrainingServer(server_config(app, _CONNECTIONS), host, app)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        if not ready.wait(_START_TIMEOUT_S):
            raise TimeoutError(f"the host did not open within {_START_TIMEOUT_S:g} s")
        yield Embedded(app, listener.getsockname())
    finally:
        server.end()
        thread.join()
