"""Which artifact belongs to a model file as it is now, without reading it: `<cache>/index/<hash of its place>.json`.

Reading gigabytes to compute a key would make a start slow, so the index remembers it for a file's size and
time; a copied or touched file is read once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from modelhost import files

#: What an artifact is called: the key of `Identity.key_for`.
KEY: Final = re.compile(r"[0-9a-f]{32}")

_INDEX: Final = "index"

#: Sizes of dimensions that a model is measured with, by name: see ModelOptions.dimensions.
Dimensions = Mapping[str, int]
NO_DIMENSIONS: Final[Dimensions] = {}


@dataclass(frozen=True, slots=True)
class Identity:
    """All that an artifact depends on besides the model: the runtime's version, the CPU, the options."""

    runtime: str
    cpu: str
    options: str = ""
    custom_op_libraries: tuple[Path, ...] = ()
    """Where the libraries with added operators are; `options` has their content."""

    def key_for(self, content: str, dimensions: Dimensions = NO_DIMENSIONS) -> str:
        """Returns the name of the artifact for a model of this content (a digest), measured with these sizes."""
        sizes = json.dumps(dict(dimensions), sort_keys=True) if dimensions else ""
        text = "\n".join(("modelhost-artifact", self.runtime, self.cpu, self.options, sizes, content))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


class ArtifactIndex:
    """The keys of model files. Blocking; any one thread at a time for each process."""

    def __init__(self, cache: Path, models: Path, identity: Identity) -> None:
        self._cache, self._models, self._identity = cache, models, identity
        self._unwritten: dict[Path, dict[str, Any]] = {}

    def known_key(self, file: Path, dimensions: Dimensions | None) -> str | None:
        """Returns the key of a file as it is now, where it is known; `dimensions` None: with any sizes."""
        reads: tuple[Callable[[Path], Any], ...] = (self._written_entry, self._unwritten.get)
        for read in reads:
            try:
                entry = read(file)
                is_same = entry["stamp"] == _stamp(file, tuple(entry["external"]))
                made_with = entry["dimensions"] if dimensions is None else dict(dimensions)
                identity = self._identity.key_for("", made_with)
                if is_same and entry["identity"] == identity and KEY.fullmatch(entry["key"]):
                    return str(entry["key"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
        return None

    def former_key(self, file: Path) -> str | None:
        """Returns the key for what the file once was, where that artifact is still there."""
        try:
            key = self._written_entry(file)["key"]
            return str(key) if KEY.fullmatch(key) and os.path.isdir(self._cache / key) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def key_of(self, file: Path, external: tuple[str, ...], dimensions: Dimensions) -> str:
        """Returns the key of a file; reads it where it is not known. Raises OSError."""
        known = self.known_key(file, dimensions)
        if known is not None:
            return known
        stamp = _stamp(file, external)
        key = self._identity.key_for(_content_digest(file, external), dimensions)
        if _stamp(file, external) != stamp:  # it was replaced meanwhile: nothing to remember
            return key
        entry = {
            "stamp": stamp,
            "external": list(external),
            "key": key,
            "dimensions": dict(dimensions),
            "identity": self._identity.key_for("", dimensions),
        }
        place = Path(self._place_for(file))
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            files.write_whole(place, json.dumps(entry).encode(), aside_in=self._cache)
        except OSError:  # so that a read-only cache does not have the model read at every look
            self._unwritten[file] = entry
        return key

    def _written_entry(self, file: Path) -> Any:
        with open(self._place_for(file), "rb") as stream:
            return json.loads(stream.read())

    def _place_for(self, file: Path) -> str:
        """Returns where a file's entry is; text, as every look at a model asks for it: see `files`."""
        place = os.path.relpath(file, self._models)
        return f"{self._cache}/{_INDEX}/{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"


def _content_digest(file: Path, external: tuple[str, ...]) -> str:
    parts = [files.digest_of(file)]
    parts += [f"{name}:{files.digest_of(file.parent / name)}" for name in sorted(external)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamp(file: Path, external: tuple[str, ...]) -> list[list[int]]:
    stats = [path.stat() for path in (file, *(file.parent / name for name in sorted(external)))]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]
