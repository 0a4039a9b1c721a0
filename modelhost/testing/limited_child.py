"""A function in a child process, by fork or in a new interpreter, and what comes back of it through a pipe."""

from __future__ import annotations

import contextlib
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Final

Call = tuple[Callable[..., Any], Sequence[Any], Mapping[str, Any]]

#: Kept free for what has to be said when there is no memory any more.
_RESERVE_BYTES: Final = 1 << 20

#: The parent's path comes first: without it there may be no package to import.
_NEW_INTERPRETER: Final = (
    "import os, pickle, sys; stream = os.fdopen(int(sys.argv[1]), 'rb'); sys.path[:] = pickle.load(stream); "
    "from modelhost.testing.limited_child import begin; begin(stream, int(sys.argv[2]))"
)


class Answer:
    """The parent's end of the pipe: collects what arrives, and reads it at the end. One thread."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self.descriptor: Final = descriptor
        self._received = bytearray()
        self.is_complete = False

    def receive(self) -> None:
        """Takes what is there; does not wait."""
        with contextlib.suppress(BlockingIOError):
            while not self.is_complete:
                piece = os.read(self.descriptor, 1 << 20)
                self._received += piece
                self.is_complete = not piece

    @property
    def is_empty(self) -> bool:
        """Whether nothing has arrived."""
        return not self._received

    def close(self) -> None:
        """Closes the pipe."""
        os.close(self.descriptor)

    def read(self) -> tuple[Any, BaseException | None]:
        """Returns what the function returned, and what it raised; both None where it has not come so far."""
        if not self._received:
            return None, None
        try:
            result, error, text = pickle.loads(self._received)
        except (EOFError, pickle.UnpicklingError):  # it was ended in the middle of it
            return None, None
        if error is not None:
            error.add_note(f"raised in the limited process:\n{text}")
        return result, error


def start_fork(call: Call, *, pgid: int, prepare: Callable[[], None]) -> tuple[int, Answer]:
    """Runs `call` in a fork, in process group `pgid`, after `prepare`; returns its PID and the pipe from it.

    Of this process's threads only the calling one goes on in it.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    with warnings.catch_warnings():
        # Raised after the fork as an error it would lose us the child.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setpgid(0, pgid)
            os.close(read)
            prepare()
            code = _answer(call, write)
        finally:
            os._exit(code)
    os.close(write)
    return pid, Answer(read)


def start_spawn(
    call: Call, *, pgid: int, command: Callable[[Sequence[str]], list[str]]
) -> tuple[subprocess.Popen[bytes], Answer]:
    """Runs `call` in a new interpreter, of which `command` makes the command line. Raises TypeError where the
    function or an argument cannot be taken there."""
    read, write = os.pipe()
    try:
        with tempfile.TemporaryFile() as stream:
            _write_call(call, stream)
            stream.seek(0)
            arguments = [sys.executable, "-c", _NEW_INTERPRETER, str(stream.fileno()), str(write)]
            child = subprocess.Popen(command(arguments), process_group=pgid, pass_fds=(stream.fileno(), write))
    except BaseException:
        os.close(read)
        raise
    finally:
        os.close(write)
    return child, Answer(read)


def begin(stream: IO[bytes], write: int) -> None:
    """What the new interpreter does: reads the call, runs it, answers, and ends."""
    os._exit(_answer((_run_sent, (stream,), {}), write))


def _run_sent(stream: IO[bytes]) -> Any:
    from multiprocessing.spawn import prepare

    with stream:
        prepare(pickle.load(stream))
        function, arguments, options = pickle.load(stream)
    return function(*arguments, **options)


def _write_call(call: Call, stream: IO[bytes]) -> None:
    from multiprocessing.spawn import get_preparation_data

    try:
        packed = pickle.dumps(call)
    except Exception as error:
        name = getattr(call[0], "__qualname__", repr(call[0]))
        raise TypeError(
            f"start='spawn' takes a function that can be imported and arguments that can be pickled, got {name}: "
            f"{error}; start='fork' takes any"
        ) from None
    data = get_preparation_data("modelhost-limited")
    data.pop("authkey", None)  # only for pipes of multiprocessing, and refuses to be pickled
    if b"__main__" not in packed:  # nothing of the main module is wanted, so that it need not run again
        data = {key: value for key, value in data.items() if not key.startswith("init_main")}
    for part in (sys.path, data):
        pickle.dump(part, stream)
    stream.write(packed)
    stream.flush()


def _answer(call: Call, write: int) -> int:
    """Runs the call and writes what came of it; returns the exit code."""
    reserve = bytearray(_RESERVE_BYTES)
    function, arguments, options = call
    code = 0
    try:
        packed = _pack_result(function(*arguments, **options))
    except BaseException as error:
        code = 1
        del reserve, call, function, arguments, options
        packed = _pack_error(error)
    with contextlib.suppress(Exception):  # a closed stream is the function's own affair
        sys.stdout.flush()
        sys.stderr.flush()
    with os.fdopen(write, "wb") as stream:
        stream.write(packed)
    return code


def _pack_result(result: Any) -> bytes:
    try:
        return pickle.dumps((result, None, ""))
    except MemoryError:
        raise
    except Exception as error:
        raise TypeError(f"what was returned, a {type(result).__name__}, cannot be sent back: {error}") from None


def _pack_error(error: BaseException) -> bytes:
    try:
        text = "".join(traceback.format_exception(error))
    except MemoryError:
        text = "no memory for the traceback"
    traceback.clear_frames(error.__traceback__)  # what they hold may be all that there is
    plain = RuntimeError(f"{type(error).__name__}: {error}")
    for sent in (error, _Bare(type(error), error.args, error.__dict__), _Bare(type(error), (str(error),), {}), plain):
        try:
            packed = pickle.dumps((None, sent, text))
            if type(pickle.loads(packed)[1]) in (type(error), RuntimeError):
                return packed
        except Exception:
            continue
    raise AssertionError("a RuntimeError can be pickled")


class _Bare:
    """Pickles as an error that is made without its constructor, which may want other arguments than it keeps."""

    def __init__(self, kind: type[BaseException], arguments: tuple[Any, ...], state: dict[str, Any]) -> None:
        self._parts = (kind, arguments, state)

    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
        return _make_bare, self._parts


def _make_bare(kind: type[BaseException], arguments: tuple[Any, ...], state: dict[str, Any]) -> BaseException:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(state)
    return error
