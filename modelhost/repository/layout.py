"""Where model files may lie: the layouts of one model's folder, its versions, its settings file.

    NAME/VERSION/model.onnx     VERSION: 1, 2, ...; Triton's layout
    NAME/model.onnx             version 1
    NAME.onnx                   version 1

`model.onnx` may be a folder that holds the file of that name beside its external data, and
`default_model_filename` in Triton's `config.pbtxt` may give the file another name. Its `version_policy` says
which versions are served, where `model.toml` does not. `model.toml` (or
`NAME.toml` beside `NAME.onnx`) holds the model's own settings.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from modelhost.config import ModelOptions, parse_model_options, parse_toml
from modelhost.errors import NO_DESCRIPTOR, ConfigError
from modelhost.repository.triton_config import CONFIG_FILE, TritonConfig, parse_config

MODEL_FILE: Final = "model.onnx"
SUFFIX: Final = ".onnx"
#: The version of a model that is not in a version folder.
ONLY_VERSION: Final = "1"
#: Stands for the version where a whole model is meant.
NO_VERSION: Final = "-"

_OPTIONS_FILE: Final = "model.toml"
_NOT_MODELS: Final = frozenset({"__pycache__", "lost+found"})
#: Settings files are a few lines; more is a mistake that must not be read into memory.
_SETTINGS_BYTES: Final = 256 << 10


@dataclass(slots=True)
class Found:
    """What one model's folder or file turned out to be.

    `files` are (version, path below the folder) in ascending order; `faults` say what cannot be
    served and why, by version, or under `-` for the model as a whole.
    """

    files: tuple[tuple[str, str], ...] = ()
    options: ModelOptions | None = None
    faults: dict[str, str] = field(default_factory=dict)


def is_hidden(name: str) -> bool:
    """Says whether a directory entry is passed over without a word."""
    return name.startswith(".") or name in _NOT_MODELS


def is_version(name: str) -> bool:
    """Says whether `name` is a version: a number above 0 as people write it."""
    return name.isascii() and name.isdigit() and name[0] != "0"


def look_into_folder(folder: str) -> Found:
    """Returns what the model folder holds. Never raises: what is wrong stands in `faults`."""
    found = Found()
    try:
        versions, others = _entries(folder)
        if _OPTIONS_FILE in others:
            found.options = _read_options(os.path.join(folder, _OPTIONS_FILE))
        config = _triton_config(folder) if CONFIG_FILE in others else TritonConfig()
        file_name = _file_name(config)
        if config.version_policy is not None:
            own = found.options or ModelOptions()
            if own.version_policy is None:
                found.options = own.model_copy(update={"version_policy": config.version_policy})
    except (ConfigError, OSError) as error:
        found.faults[NO_VERSION] = reason(error)
        return found
    candidates = [(version, f"{version}/{file_name}") for version in versions]
    if file_name in others and not versions:
        candidates = [(ONLY_VERSION, file_name)]
    elif file_name in others:
        found.faults[NO_VERSION] = f"'{file_name}' beside version folders is ignored"
    _check_files(folder, candidates, found)
    if not candidates:
        found.faults[NO_VERSION] = _nothing_servable(file_name, others)
    return found


def look_at_only_model(folder: str) -> Found | None:
    """Returns what a folder holds that may be that of one model, or have its one file directly in it; None where
    it is a repository of several, or of none. Never raises, as above.

    So does KServe lay out what it has fetched: what lies below `storageUri`, without a folder of the model's name.
    """
    found = look_into_folder(folder)
    if found.files or found.faults.keys() != {NO_VERSION}:
        return found
    try:
        _, others = _entries(folder)
        names = [name for name in others if not is_hidden(name)]
        files = [name for name in names if name.endswith(SUFFIX)]
        if len(files) != 1 or any(os.path.isdir(os.path.join(folder, name)) for name in names):
            return None
        found = look_at_file(os.path.join(folder, files[0]))
    except OSError:  # who looks for several says what is wrong with the folder
        return None
    found.files = tuple((version, files[0]) for version, _ in found.files)
    return found


def look_at_file(path: str) -> Found:
    """Returns what the single file `NAME.onnx` is. Never raises, as above."""
    try:
        _servable("", path)
        return Found(((ONLY_VERSION, ""),), _options_beside(path))
    except (ConfigError, OSError) as error:
        return Found(faults={NO_VERSION: reason(error)})


def reason(error: Exception) -> str:
    """Returns the sentence that says what went wrong, without the path that its reader knows.

    Raises the error where it says nothing about what was looked at, as no descriptor was left for it.
    """
    if not isinstance(error, OSError):
        return str(error)
    if error.errno in NO_DESCRIPTOR:
        raise error
    what = f"'{os.path.basename(str(error.filename))}': " if error.filename else ""
    return f"{what}{error.strerror or error}"


def _entries(folder: str) -> tuple[list[str], set[str]]:
    """Returns the versions in `folder` in ascending order, and the names of everything else."""
    versions: list[str] = []
    others: set[str] = set()
    with os.scandir(folder) as entries:
        for entry in entries:
            if is_version(entry.name) and not entry.is_file():
                versions.append(entry.name)
            else:
                others.add(entry.name)
    versions.sort(key=int)
    return versions, others


def _check_files(folder: str, candidates: Iterable[tuple[str, str]], found: Found) -> None:
    """Sorts the candidates into `found.files` and `found.faults`."""
    files: list[tuple[str, str]] = []
    for version, relative in candidates:
        try:
            files.append((version, _servable(folder, relative)))
        except FileNotFoundError:
            found.faults[version] = f"there is no '{os.path.basename(relative)}' in it"
        except (ConfigError, OSError) as error:
            found.faults[version] = reason(error)
    found.files = tuple(files)


def _servable(folder: str, relative: str) -> str:
    """Returns the path below `folder` of the model file itself. Raises ConfigError or OSError."""
    status = os.stat(os.path.join(folder, relative))
    if stat.S_ISDIR(status.st_mode):
        relative = f"{relative}/{os.path.basename(relative)}"
        status = os.stat(os.path.join(folder, relative))
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"'{os.path.basename(relative)}' is not a file")
    if status.st_size == 0:
        raise ConfigError(f"'{os.path.basename(relative)}' is empty")
    return relative


def _nothing_servable(file_name: str, others: Iterable[str]) -> str:
    """Says what is missing, and which entry was probably meant."""
    wanted = f"it holds no '{file_name}', and no version folder (1, 2, ...) with one"
    strays = sorted(name for name in others if name.endswith(SUFFIX) or name.isdigit())
    return f"{wanted}; found '{strays[0]}'" if strays else wanted


def _options_beside(path: str) -> ModelOptions | None:
    """Reads `NAME.toml` beside `NAME.onnx`, where there is one. Raises ConfigError or OSError."""
    try:
        return _read_options(path.removesuffix(SUFFIX) + ".toml")
    except FileNotFoundError:
        return None


def _read_options(path: str) -> ModelOptions:
    """Raises ConfigError, or OSError where the file cannot be read."""
    name = os.path.basename(path)
    try:
        table: Mapping[str, object] = parse_toml(_read_settings(path))
    except ValueError as error:
        raise ConfigError(f"{name} is not TOML: {error}") from None
    return parse_model_options(table, source=name)


def _triton_config(folder: str) -> TritonConfig:
    """Raises ConfigError or OSError."""
    return parse_config(_read_settings(os.path.join(folder, CONFIG_FILE)))


def _file_name(config: TritonConfig) -> str:
    """Returns what Triton's configuration calls model files. Raises ConfigError."""
    name = config.file_name
    if name is None:
        return MODEL_FILE
    if not name.endswith(SUFFIX) or "/" in name or "\\" in name or "\0" in name:
        raise ConfigError(f"{CONFIG_FILE} names the model file '{name}', which is no .onnx file in its folder")
    return name


def _read_settings(path: str) -> str:
    if not stat.S_ISREG(os.stat(path).st_mode):  # before open(), which waits for ever on a pipe
        raise ConfigError(f"{os.path.basename(path)} is not a file")
    with open(path, "rb") as file:
        data = file.read(_SETTINGS_BYTES + 1)
    if len(data) > _SETTINGS_BYTES:
        raise ConfigError(f"{os.path.basename(path)} is larger than {_SETTINGS_BYTES} bytes")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{os.path.basename(path)} is not UTF-8 text") from None
