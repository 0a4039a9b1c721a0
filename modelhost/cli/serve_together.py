"""`modelhost serve --workers N`: the host as several processes that share port, weights and memory limit."""

from __future__ import annotations

import gc
import os
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from modelhost.config import Settings
from modelhost.errors import ConfigError, ModelHostError

if TYPE_CHECKING:
    from modelhost.memory.board import Seat


def serve_together(workers: int, settings: Settings, listener: socket.socket, serve: Callable[..., None]) -> None:
    """Serves in so many processes until a signal ends them; `serve` does so in each, with what it listens on.

    Raises ConfigError, SystemExit with the status of what could not start.
    """
    if not hasattr(os, "fork"):
        raise ConfigError(f"server.workers = {workers}: several processes are not served with on {sys.platform}")
    if settings.server.grpc_port is not None:
        raise ConfigError(
            f"server.workers = {workers} is for HTTP only, and server.grpc_port is set: leave one of them out"
        )
    if settings.memory.policy == "adaptive":
        raise ConfigError(
            f"server.workers = {workers} has fixed thresholds, and memory.policy is adaptive, which learns from one "
            "process: leave one of them out"
        )
    _import_all()
    from modelhost.api.accepting import BACKLOG
    from modelhost.api.drain import Shared
    from modelhost.memory.board import Board
    from modelhost.supervisor import Supervisor

    listener.listen(BACKLOG)
    private = [_private() for _ in range(workers)]
    board = Board(workers, [end.getsockname() for end in private])

    def in_child(seat: Seat) -> int:
        is_first_start = not board.baseline_bytes
        try:
            serve(Shared(seat, listener, private[seat.number]), announces=seat.number == 0 and is_first_start)
        except ModelHostError as error:
            print(f"modelhost: {error}", file=sys.stderr)
            return 1
        return 0

    gc.collect()
    gc.freeze()  # a collection in a fork would write to every page
    status = Supervisor(board, in_child, drain_timeout_s=settings.server.drain_timeout, on_end=listener.close).run()
    if status:
        raise SystemExit(status)


def _private() -> socket.socket:
    """Returns the socket on which one process is asked by the others; the kernel chooses its name, which is no file's.

    Whoever connects to it needs a key as anybody else does.
    """
    if sys.platform == "linux":
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.bind("")
    else:
        end = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        end.bind(("127.0.0.1", 0))
    end.listen()
    return end


def _import_all() -> None:
    """Imports what each process needs, once: forks share its pages."""

    import modelhost.api.app
    import modelhost.runtime.ort
    import modelhost.runtime.preparing
    import modelhost.runtime.worker.workers  # noqa: F401
