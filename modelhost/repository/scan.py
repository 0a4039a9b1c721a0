"""The index of the model repository: names to versions, files and options."""

from __future__ import annotations

import difflib
import os
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final

from modelhost.config import ModelOptions
from modelhost.errors import NO_DESCRIPTOR, ConfigError, ModelBroken, ModelNotFound
from modelhost.repository.layout import (
    NO_VERSION,
    SUFFIX,
    Found,
    is_hidden,
    look_at_file,
    look_at_only_model,
    look_into_folder,
    reason,
)

#: Names compared for a suggestion. An unknown name is answered on the event loop and anybody may
#: send one: fifty comparisons take about a millisecond.
_SUGGESTION_POOL: Final = 50
#: The most of an unknown name that is compared, and repeated in messages.
_SHOWN_LENGTH: Final = 100

_DEFAULTS: Final = ModelOptions()

#: Paths that outlive scans: who has everything looked up anew at each would fill the interpreter's table of names
#: (see `files`).
_PATHS_KEPT: Final = 1024


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One version of a model: its .onnx file and the options of the model that it belongs to."""

    name: str
    version: str
    path: Path
    options: ModelOptions


@dataclass(frozen=True, slots=True)
class Index:
    """What one scan found, for the repository alone to look into; never changed once it is the repository's.

    `models` gives (version, path below the model's folder) in ascending order; the path of a single
    file is empty. Where the directory is the one model's own, its files lie in it and not in a folder of its name.
    """

    models: dict[str, tuple[tuple[str, str], ...]] = field(default_factory=dict)
    names: tuple[str, ...] = ()
    options: dict[str, ModelOptions] = field(default_factory=dict)
    faults: dict[str, dict[str, str]] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    is_one_model: bool = False


class Repository:
    """The models below one directory, as the last `scan` found them.

    `scan` and `look` block on the disk and may run on any thread; everything else only looks into the last
    index, from any thread, and does not wait. Names that clients send are keys into that index and
    never become paths.
    """

    def __init__(self, directory: Path, only_name: str | None = None) -> None:
        """Where the directory turns out to be that of one model, `only_name` is what that is called."""
        self._directory, self._only_name = directory, only_name
        self._index = Index()
        self._paths: dict[str, Path] = {}

    @property
    def directory(self) -> Path:
        """The directory that is scanned."""
        return self._directory

    @property
    def problems(self) -> Mapping[str, str]:
        """Why something is not served, by model name; other versions of that model may be."""
        return self._index.problems

    def scan(self) -> None:
        """Looks at the directory again and replaces the index in one step.

        Raises ConfigError, and keeps the last index, where the directory itself cannot be read; OSError where no
        descriptor is left.
        What is wrong with one model stands in `problems` and stops no other.
        """
        self.take(self.look())

    def look(self) -> Index:
        """Returns what the directory holds now, for `take`; raises as `scan` does."""
        return _build(os.fspath(self._directory), self._only_name)

    def take(self, index: Index) -> None:
        """Makes what was found the index that everything else looks into."""
        self._index = index

    def is_absent(self, name: str, version: str) -> bool:
        """Whether nothing of a version is on disk, not even something that cannot be served."""
        index = self._index
        faults = index.faults.get(name, {})
        if version in faults or (name not in index.models and faults):
            return False
        return all(known != version for known, _ in index.models.get(name, ()))

    def names(self) -> tuple[str, ...]:
        """Returns the names of all models that can be served, sorted."""
        return self._index.names

    @property
    def stated_options(self) -> Mapping[str, ModelOptions]:
        """The options of the models that have some of their own, by name."""
        return self._index.options

    def versions(self, name: str) -> tuple[str, ...]:
        """Returns the versions of `name`, lowest first. Raises ModelNotFound or ModelBroken."""
        index = self._index
        files = index.models.get(name)
        if files is None:
            raise _missing(index, name, None)
        return tuple(version for version, _ in files)

    def find(self, name: str, version: str | None = None) -> ModelFile:
        """Returns the file of `version`, of the highest one where None is asked for.

        Raises ModelNotFound, or ModelBroken where it is on disk and cannot be served.
        """
        index = self._index
        files = index.models.get(name, ())
        for known, relative in reversed(files):
            if version is None or known == version:
                below = f"{name}/{relative}" if relative else name + SUFFIX
                place = self._path(relative if index.is_one_model else below)
                return ModelFile(name, known, place, index.options.get(name, _DEFAULTS))
        raise _missing(index, name, version)

    def _path(self, below: str) -> Path:
        path = self._paths.get(below)
        if path is None:
            if len(self._paths) >= _PATHS_KEPT:
                self._paths.clear()
            path = self._paths[below] = self._directory / below
        return path

    def options(self, name: str) -> ModelOptions:
        """Returns the options that lie beside a model; the defaults where there are none, nor a model."""
        return self._index.options.get(name, _DEFAULTS)

    def __contains__(self, name: object) -> bool:
        return name in self._index.models

    def __len__(self) -> int:
        return len(self._index.models)


class _Builder:
    """Collects one scan's findings; used by that scan only."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[tuple[str, str], ...]] = {}
        self.options: dict[str, ModelOptions] = {}
        self.faults: dict[str, dict[str, str]] = {}
        # Equal values are one object, so ten thousand models of one layout cost little more than
        # their names.
        self._shared: dict[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]] = {}

    def add(self, name: str, found: Found) -> None:
        if found.files:
            self.models[name] = self._shared.setdefault(found.files, found.files)
            if found.options is not None:
                self.options[name] = found.options
        if found.faults:
            self.faults[name] = found.faults

    def add_file(self, directory: str, name: str) -> None:
        """Adds the single file `name`, unless a folder of that name came first."""
        if name in self.models or name in self.faults:
            text = f"'{name}{SUFFIX}' is ignored, the folder '{name}' has the same name"
            self.faults.setdefault(name, {}).setdefault(NO_VERSION, text)
        else:
            self.add(name, look_at_file(os.path.join(directory, name + SUFFIX)))

    def index(self, *, is_one_model: bool = False) -> Index:
        problems = {name: _sentence(self.faults[name]) for name in sorted(self.faults)}
        return Index(
            models=self.models,
            names=tuple(sorted(self.models)),
            options=self.options,
            faults=self.faults,
            problems=MappingProxyType(problems),
            is_one_model=is_one_model,
        )


def _build(directory: str, only_name: str | None) -> Index:
    builder = _Builder()
    files: list[str] = []
    if only_name is not None and (found := look_at_only_model(directory)) is not None:
        builder.add(only_name, found)
        return builder.index(is_one_model=True)
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if not is_hidden(entry.name):
                    _look_at(entry, builder, files)
    except FileNotFoundError:
        raise ConfigError(
            f"the model directory '{directory}' does not exist; create it, or set models.directory "
            "to the folder that holds your models"
        ) from None
    except OSError as error:
        if error.errno in NO_DESCRIPTOR:
            raise
        text = f"cannot read the model directory '{directory}': {error.strerror}"
        raise ConfigError(text) from None
    for name in files:
        builder.add_file(directory, name)
    return builder.index()


def _look_at(entry: os.DirEntry[str], builder: _Builder, files: list[str]) -> None:
    """Adds a folder to `builder`, a single model file's name to `files`, nothing else."""
    try:
        if not entry.name.isprintable():  # which no name is that is not UTF-8
            shown = entry.name.encode("unicode_escape").decode()
            text = "its name has characters that cannot be printed"
            builder.add(shown, Found(faults={NO_VERSION: text}))
        elif entry.is_dir():
            builder.add(entry.name, look_into_folder(entry.path))
        elif entry.name.endswith(SUFFIX):
            files.append(entry.name.removesuffix(SUFFIX))
        elif entry.is_symlink() and not entry.is_file():
            builder.add(entry.name, Found(faults={NO_VERSION: "the symbolic link leads nowhere"}))
    except OSError as error:  # one entry's fault must not look like the directory's
        builder.add(entry.name, Found(faults={NO_VERSION: reason(error)}))


def _missing(index: Index, name: str, version: str | None) -> ModelNotFound | ModelBroken:
    """Returns the error that says why `find` has nothing to give, and what there is instead."""
    faults = index.faults.get(name, {})
    files = index.models.get(name)
    if version in faults and version != NO_VERSION:
        return ModelBroken(name, version, faults[version])
    if faults and files is None:
        return ModelBroken(name, _shown(version or NO_VERSION), index.problems[name])
    if files is not None:
        known = ", ".join(known for known, _ in files[-10:])
        return ModelNotFound(f"model '{name}' has no version '{_shown(version or NO_VERSION)}'; it has {known}")
    if not index.names:
        return ModelNotFound(f"no model '{_shown(name)}'; the model directory holds none")
    nearest = _nearest(index.names, name)
    advice = f"; did you mean '{nearest}'?" if nearest else ""
    return ModelNotFound(f"no model '{_shown(name)}'{advice}")


def _nearest(names: tuple[str, ...], name: str) -> str | None:
    """Returns the name that was probably meant, among those that sort close to it."""
    if len(name) > _SHOWN_LENGTH:
        return None
    middle = bisect_left(names, name)
    start = max(0, min(middle - _SUGGESTION_POOL // 2, len(names) - _SUGGESTION_POOL))
    matches = difflib.get_close_matches(name, names[start : start + _SUGGESTION_POOL], n=1)
    return matches[0] if matches else None


def _shown(text: str) -> str:
    return text if len(text) <= _SHOWN_LENGTH else text[:_SHOWN_LENGTH] + "..."


def _sentence(faults: Mapping[str, str]) -> str:
    return "; ".join(
        text if version == NO_VERSION else f"version {version}: {text}" for version, text in faults.items()
    )
