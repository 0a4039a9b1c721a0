"""`modelhost` on a system without what only POSIX has: no such modules, and none of those parts of `os`.

Other people's packages are imported before that is taken away: theirs have a form for Windows, which is not there.
"""

from __future__ import annotations

import asyncio
import sys
import types
from importlib import import_module

COMMAND = (
    sys.executable,
    "-c",
    "import windows; windows.take_away(); from modelhost.cli.main import main; main()",
)

#: What looks for POSIX as it is imported, and the parts of the interpreter's library that do so when they are used.
THEIRS = (
    *("getpass", "multiprocessing", "subprocess", "tempfile", "webbrowser"),
    *("click", "fastapi", "httptools", "numpy", "onnxruntime", "orjson", "psutil", "pydantic_settings", "simdjson"),
    *("uvicorn", "uvicorn.loops.asyncio"),
)

MODULES = ("resource", "fcntl", "termios", "pty", "tty", "pwd", "grp", "syslog", "uvloop", "readline", "curses")
PARTS = {
    "os": (
        *("O_CLOEXEC", "O_NONBLOCK", "fork", "getuid", "geteuid", "killpg", "memfd_create", "mkfifo", "pread"),
        *("sched_getaffinity", "sched_setaffinity", "set_blocking", "setsid", "statvfs", "sysconf"),
    ),
    "signal": ("SIGHUP", "SIGKILL", "SIGCHLD", "SIGUSR1", "SIGALRM", "pthread_sigmask"),
    "time": ("CLOCK_BOOTTIME", "clock_gettime"),
}


def take_away() -> None:
    """Leaves this process what Windows has, and a lock on files of the same name as there."""
    for name in THEIRS:
        import_module(name)
    for name in MODULES:
        sys.modules[name] = None  # type: ignore[assignment]
    for module, names in PARTS.items():
        for name in names:
            delattr(sys.modules[module], name)
    msvcrt = types.ModuleType("msvcrt")
    msvcrt.LK_NBLCK, msvcrt.locking = 2, lambda descriptor, mode, size: None  # type: ignore[attr-defined]
    sys.modules["msvcrt"] = msvcrt
    asyncio.ProactorEventLoop = asyncio.SelectorEventLoop  # type: ignore[attr-defined]
    sys.platform = "win32"
