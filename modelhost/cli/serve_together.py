"""`modelhost serve --workers N`: the host as several processes that share port, weights and memory limit."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from importlib import import_module
from typing import TYPE_CHECKING, Protocol

from modelhost.config import Settings
from modelhost.errors import ConfigError, ModelHostError

if TYPE_CHECKING:
    from modelhost.api.drain import Shared


class Service(Protocol):
    """A host with its server, which the processes are copies of."""

    def run(self, *, announces: bool) -> None:
        """Serves until a signal ends it; `announces`: says for all of them where."""

    def refresh(self) -> None:
        """Takes over what has changed in files, for copies that are made from here on."""


def serve_together(
    workers: int,
    settings: Settings,
    listener: socket.socket,
    make: Callable[[Settings, socket.socket, Shared], Service],
) -> None:
    """Serves in so many processes until a signal ends them; `make` is called once, before there are any.

    Raises ConfigError, SystemExit with the status of what could not start.
    """
    if not hasattr(os, "fork"):
        raise ConfigError(f"server.workers = {workers}: several processes are not served with on {sys.platform}")
    if settings.memory.policy == "adaptive":
        raise ConfigError(
            f"server.workers = {workers} has fixed thresholds, and memory.policy is adaptive, which learns from one "
            "process: leave one of them out"
        )
    _import_all()
    if settings.runtime.intra_op_threads == 1:
        from modelhost.runtime.engine import rehearse

        rehearse()
    ends = ExitStack()
    ends.callback(listener.close)
    if settings.server.grpc_port is not None:
        settings = _with_rpc_port(settings, ends)
    from modelhost.api.accepting import BACKLOG
    from modelhost.api.drain import Shared
    from modelhost.memory.board import Board, Seat
    from modelhost.supervisor import Supervisor

    listener.listen(BACKLOG)
    privates = [_private() for _ in range(workers)]
    board = Board(workers, [end.getsockname() for end in privates])
    seat = Seat(board)
    service = make(settings, listener, Shared(seat, listener, privates))

    def in_child(number: int) -> int:
        seat.sit(number)
        is_first_start = not board.baseline_bytes
        try:
            service.run(announces=number == 0 and is_first_start)
        except ModelHostError as error:
            print(f"modelhost: {error}", file=sys.stderr)
            return 1
        return 0

    gc.collect()
    gc.freeze()  # a collection in a fork would write to every page
    status = Supervisor(
        board,
        in_child,
        drain_timeout_s=settings.server.drain_timeout,
        on_hangup=service.refresh,
        on_end=ends.close,
    ).run()
    if status:
        raise SystemExit(status)


def _with_rpc_port(settings: Settings, ends: ExitStack) -> Settings:
    """Takes the port for gRPC, on which each process will listen; returns settings that name it. Raises ConfigError."""
    from modelhost.api.app import import_rpc

    reserved = import_rpc().reserve_port(settings.server, is_shared=True)  # nothing of gRPC begins before the fork
    ends.callback(reserved.close)
    server = settings.server.model_copy(update={"grpc_port": reserved.getsockname()[1]})
    return settings.model_copy(update={"server": server})


def _private() -> socket.socket:
    """Returns the socket on which one process is asked by the others; the kernel chooses its name, which is no file's.

    Whoever connects to it needs a key as anybody else does.
    """
    from modelhost.api.accepting import BACKLOG

    if sys.platform == "linux":
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.bind("")
    else:
        end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        end.bind(("127.0.0.1", 0))
    end.listen(BACKLOG)
    return end


def _import_all() -> None:
    """Imports what each process needs, once: forks share its pages, and an import in each of them writes to many."""
    names = (
        "fastapi.telemetry._runtime",
        "modelhost.runtime.ort",
        "modelhost.runtime.preparing",
        "modelhost.runtime.worker.workers",
        "uvicorn.lifespan.on",
        "uvicorn.loops.uvloop",
        "uvloop",
    )
    for name in names:
        import_module(name)
