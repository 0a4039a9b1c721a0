"""What clients may read of an error: the text without the host's paths, of which the file's name is left.

ONNX Runtime, the C library and the operating system put paths into their messages: those of models, of the machine
that built them, of Python's files. Names in a graph look like paths as well ('/encoder/layer.0/Add'), and are what
the reader needs: a path is what begins with a folder that this machine, or any, has at its root, or ends in a file.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

#: Anything with a slash in it, as long as it may be a path without spaces.
_TOKEN: Final = re.compile(r"""[^\s'"`(),;=<>\[\]{}]*[\\/][^\s'"`(),;=<>\[\]{}]*""")
#: In quotes a path may have spaces.
_QUOTED: Final = re.compile(r"""(['"])(/[^'"\n]*)\1""")
_FILE: Final = re.compile(
    r"\.(onnx|ort|bin|data|pb|pbtxt|so|py|pyc|c|cc|cpp|h|hpp|toml|json|txt|npy|npz)(\.\d+)?(:\d+)?:?$"
)
#: Below a folder that is not said: where ONNX Runtime's or Python's own code was. Other such may be a client's.
_SOURCE: Final = re.compile(r"\.(py|c|cc|cpp|h|hpp):\d+:?$")
_DRIVE: Final = re.compile(r"[A-Za-z]:[\\/]")

#: What is at the root of other machines, such as the one that built ONNX Runtime.
_COMMON_ROOTS: Final = frozenset(
    {"bin", "boot", "dev", "etc", "home", "lib", "lib64", "media", "mnt", "onnxruntime_src", "opt", "private", "proc"}
    | {"root", "run", "sbin", "srv", "sys", "tmp", "usr", "var", "Users", "Volumes"}
)

_own_folders: Final[list[str]] = []


def hide(folders: Iterable[Path]) -> None:
    """Has these folders left out wherever they stand, with spaces in their names, too. For all of the process."""
    for folder in folders:
        for text in (str(folder.absolute()), str(folder.resolve()), str(folder)):
            if len(text) > 1 and text not in _own_folders:
                _own_folders.append(text)
    _own_folders.sort(key=len, reverse=True)


def without_paths(text: str) -> str:
    """Returns the text with the file's name in the place of each path."""
    if "/" not in text and "\\" not in text:
        return text
    for folder in _own_folders:
        text = text.replace(f"{folder}/", "")
        if os.path.isabs(folder):
            text = text.replace(folder, os.path.basename(folder))
    text = _QUOTED.sub(_shorten_quoted, text)
    return _TOKEN.sub(lambda found: _last(found[0]) if _is_path(found[0]) else found[0], text)


def without_paths_within(value: Any) -> Any:
    """Returns a value of JSON with every text in it cleaned."""
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, dict):
        return {key: without_paths_within(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_paths_within(item) for item in value]
    return value


def _shorten_quoted(found: re.Match[str]) -> str:
    return f"{found[1]}{_last(found[2])}{found[1]}" if _is_path(found[2]) else found[0]


def _is_path(text: str) -> bool:
    if text.startswith("/") and text.split("/")[1] in _roots():
        return True
    if _DRIVE.match(text) or text.startswith(("\\\\", "~/", "./", "../")):
        return True
    return (_FILE if text.startswith("/") else _SOURCE).search(text) is not None


def _last(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


@functools.cache
def _roots() -> frozenset[str]:
    try:
        return _COMMON_ROOTS | set(os.listdir("/"))
    except OSError:
        return _COMMON_ROOTS
