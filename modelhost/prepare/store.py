"""Artifacts on disk: where they are, whether they can be trusted, which have to go.

    <cache>/<key>/manifest.json, model.onnx, model.bin     one artifact, renamed into place when whole
    <cache>/index/<hash of the model's place>.json          which key belongs to a file as it is now

The key is a hash of the model's content and of all that its artifact depends on. Reading gigabytes to
compute it would make a start slow, so the index remembers it for a file's size and time; a copied or
touched file is read once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from modelhost.prepare.manifest import Manifest

log = logging.getLogger("modelhost")

#: Name of the cache beside the models; a hidden folder is no model.
CACHE_FOLDER: Final = ".modelhost"

_MANIFEST: Final = "manifest.json"
_INDEX: Final = "index"
_ASIDE: Final = "tmp-"
_FILES: Final = ("model.onnx", "model.bin")
_CHUNK_BYTES: Final = 1 << 20
_KEY: Final = re.compile(r"[0-9a-f]{32}")


#: Sizes of dimensions that a model is measured with, by name: see ModelOptions.dimensions.
Dimensions = Mapping[str, int]
_NONE: Final[Dimensions] = {}


@dataclass(frozen=True, slots=True)
class Identity:
    """All that an artifact depends on besides the model: the runtime's version, the CPU, the options."""

    runtime: str
    cpu: str
    options: str = ""

    def key_for(self, content: str, dimensions: Dimensions = _NONE) -> str:
        """Returns the name of the artifact for a model of this content (a digest), measured with these sizes."""
        sizes = json.dumps(dict(dimensions), sort_keys=True) if dimensions else ""
        text = "\n".join(("modelhost-artifact", self.runtime, self.cpu, self.options, sizes, content))
        return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Artifact:
    """A prepared model that was found whole."""

    directory: Path
    manifest: Manifest

    @property
    def model_file(self) -> Path:
        """The graph; its weights lie beside it."""
        return self.directory / "model.onnx"


@dataclass(frozen=True, slots=True)
class Standing:
    """How a model file stands: whether it has an artifact, and what is wrong where that does not serve."""

    state: Literal["prepared", "stale", "missing", "damaged"]
    why: str
    artifact: Artifact | None = None


class ArtifactStore:
    """Finds, takes in and throws out artifacts. Blocking; any one thread at a time for each process.

    A read-only or absent cache is fine: then only what is there is used.
    """

    def __init__(self, cache: Path, models: Path, identity: Identity) -> None:
        self.cache, self._models, self.identity = cache, models, identity
        self._checked: dict[Path, tuple[int, bool]] = {}

    def find(
        self, file: Path, external: tuple[str, ...] | None = None, dimensions: Dimensions | None = None
    ) -> Artifact | None:
        """Returns the artifact of a model file, or None where there is none that can be used.

        With `external` (the model's other files) a file that the index does not know is read, to see
        whether an artifact came with it from elsewhere. Without `dimensions`, whatever it was made with.
        """
        key = self._known_key(file, dimensions)
        if key is None and external is not None and self.cache.is_dir():
            with contextlib.suppress(OSError):
                key = self.key_of(file, external, dimensions or _NONE)
        artifact = None if key is None else self._open(key)
        if artifact is not None:
            with contextlib.suppress(OSError):
                os.utime(artifact.directory)  # last used
        return artifact

    def look(self, file: Path, external: tuple[str, ...] = (), dimensions: Dimensions = _NONE) -> Standing:
        """Returns how a model file stands, for people; reads the file where the index does not know it.

        Raises OSError where the file cannot be read.
        """
        known = self._known_key(file, dimensions)
        former = self._former_key(file) if known is None else None
        key = known or (self.key_of(file, external, dimensions) if self.cache.is_dir() else "")
        if not key or not (self.cache / key).is_dir():
            if former is None:
                return Standing("missing", "")
            return Standing("stale", "made of other content, for another runtime or CPU, or with other sizes")
        found = self._examine(key)
        return Standing("damaged", found) if isinstance(found, str) else Standing("prepared", "", found)

    def token(self, file: Path) -> int:
        """Returns a number that changes when the file gets or loses its artifact; 0 for none."""
        key = self._known_key(file, None)
        return int(key[:15], 16) if key is not None and (self.cache / key / _MANIFEST).exists() else 0

    def key_of(self, file: Path, external: tuple[str, ...] = (), dimensions: Dimensions = _NONE) -> str:
        """Returns the key of a model file; reads the file where the index does not know it. Raises OSError."""
        known = self._known_key(file, dimensions)
        if known is not None:
            return known
        stamp = _stamp(file, external)
        key = self.identity.key_for(_content_digest(file, external), dimensions)
        if _stamp(file, external) != stamp:  # it was replaced meanwhile: nothing to remember
            return key
        entry = {
            "stamp": stamp,
            "external": list(external),
            "key": key,
            "dimensions": dict(dimensions),
            "identity": self.identity.key_for("", dimensions),
        }
        with contextlib.suppress(OSError):
            _write_whole(self._index_file(file), json.dumps(entry))
        return key

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """Yields a folder to build an artifact in; what is left of it at the end is removed. Raises OSError.

        It is locked meanwhile, so that another process's `clean_up` can tell it from what a crash left.
        """
        self.cache.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_ASIDE, dir=self.cache))
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)

    def adopt(self, folder: Path, manifest: Manifest) -> Artifact:
        """Makes a built folder the artifact of its key, at once and whole. Raises OSError.

        Only `model.onnx` and `model.bin` are taken along.
        """
        files = {}
        for path in folder.iterdir():
            if path.name not in _FILES:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                continue
            _sync(path)
            stat = path.stat()
            files[path.name] = (stat.st_size, stat.st_mtime_ns, digest_of(path))
        manifest = replace(manifest, files=files)
        _write_whole(folder / _MANIFEST, manifest.to_json())
        target = self.cache / manifest.key
        if target.exists():
            shutil.rmtree(target)
        folder.rename(target)
        return Artifact(target, manifest)

    def grow(self, artifact: Artifact, resident_bytes: int) -> None:
        """Writes a larger figure into a manifest, as far as the cache can be written."""
        found = artifact.manifest
        grown = replace(found, resident_bytes=resident_bytes, peak_bytes=max(found.peak_bytes, resident_bytes))
        with contextlib.suppress(OSError):
            _write_whole(artifact.directory / _MANIFEST, grown.to_json())

    def size_bound(self, configured: int | Literal["auto"]) -> int:
        """Returns the bytes that all artifacts may have; `auto`: half of what is free, theirs counted as free."""
        if configured != "auto":
            return configured
        with contextlib.suppress(OSError):
            return (shutil.disk_usage(self.cache).free + _size_bytes(self.cache)) // 2
        return sys.maxsize

    def reject(self, key: str) -> None:
        """Removes an artifact that proved unusable."""
        shutil.rmtree(self.cache / key, ignore_errors=True)

    def clean_up(self, *, max_bytes: int | None = None, in_use: frozenset[str] = frozenset()) -> int:
        """Removes what crashes left behind, then the least recently used artifacts over `max_bytes`.

        Returns the bytes that were removed. An artifact in use never goes.
        """
        removed = 0
        found: list[tuple[float, int, Path]] = []
        with contextlib.suppress(OSError):
            for entry in sorted(self.cache.iterdir()):
                if entry.name.startswith(_ASIDE) and not _is_locked(entry):
                    removed += _remove(entry)
                elif max_bytes is not None and _KEY.fullmatch(entry.name):
                    found.append((entry.stat().st_mtime, _size_bytes(entry), entry))
            for entry in (self.cache / _INDEX).iterdir():
                if entry.suffix != ".json" and not _is_locked(entry):
                    removed += _remove(entry)
        total = sum(size for _, size, _ in found)
        for _, _, entry in sorted(found):
            if max_bytes is None or total <= max_bytes:
                break
            if entry.name not in in_use:
                gone = _remove(entry)
                total -= gone
                removed += gone
        return removed

    # --- inside --------------------------------------------------------------------------------------

    def _known_key(self, file: Path, dimensions: Dimensions | None) -> str | None:
        """Returns the key that the index has for the file as it is now; `dimensions` None: with any sizes."""
        try:
            entry = json.loads(self._index_file(file).read_text())
            is_same = entry["stamp"] == _stamp(file, tuple(entry["external"]))
            made_with = entry["dimensions"] if dimensions is None else dict(dimensions)
            identity = self.identity.key_for("", made_with)
            if is_same and entry["identity"] == identity and _KEY.fullmatch(entry["key"]):
                return str(entry["key"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            pass
        return None

    def _former_key(self, file: Path) -> str | None:
        """Returns the key that the index has for what the file once was, where that artifact is still there."""
        try:
            key = json.loads(self._index_file(file).read_text())["key"]
            return str(key) if _KEY.fullmatch(key) and (self.cache / key).is_dir() else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _index_file(self, file: Path) -> Path:
        place = os.path.relpath(file, self._models)
        return self.cache / _INDEX / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"

    def _open(self, key: str) -> Artifact | None:
        found = self._examine(key)
        if isinstance(found, Artifact):
            return found
        if (self.cache / key).is_dir():
            log.warning("the artifact %s is damaged and not used: %s", self.cache / key, found)
        return None

    def _examine(self, key: str) -> Artifact | str:
        """Reads a manifest and checks that its files are there, whole, and those that it speaks of.

        Returns what is wrong where something is. A file with the size and the time that it was written
        with is trusted; one that was copied or touched since is read once in the life of the process.
        """
        folder = self.cache / key
        try:
            manifest = Manifest.from_json((folder / _MANIFEST).read_text())
            if manifest.key != key or not set(manifest.files) <= set(_FILES):
                return f"{_MANIFEST} is that of another artifact"
            if manifest.variant != "heap" and _FILES[0] not in manifest.files:
                return f"{_MANIFEST} speaks of no {_FILES[0]}"
            for name, (size, mtime_ns, digest) in manifest.files.items():
                stat = (folder / name).stat()
                if stat.st_size != size:
                    return f"{name} has {stat.st_size} bytes, {size} were written"
                if stat.st_mtime_ns != mtime_ns and not self._is_unchanged(folder / name, stat.st_mtime_ns, digest):
                    return f"{name} has not the content that was written"
        except OSError as error:
            return f"{Path(error.filename or folder).name}: {error.strerror}"
        except ValueError as error:
            return f"{_MANIFEST}: {error}"
        return Artifact(folder, manifest)

    def _is_unchanged(self, file: Path, mtime_ns: int, digest: str) -> bool:
        known = self._checked.get(file)
        if known is None or known[0] != mtime_ns:
            known = self._checked[file] = (mtime_ns, digest_of(file) == digest)
        return known[1]


def digest_of(file: Path) -> str:
    """Returns the SHA-256 of a file. Raises OSError."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _content_digest(file: Path, external: tuple[str, ...]) -> str:
    parts = [digest_of(file)]
    parts += [f"{name}:{digest_of(file.parent / name)}" for name in sorted(external)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _stamp(file: Path, external: tuple[str, ...]) -> list[list[int]]:
    stats = [path.stat() for path in (file, *(file.parent / name for name in sorted(external)))]
    return [[stat.st_size, stat.st_mtime_ns] for stat in stats]


def _size_bytes(folder: Path) -> int:
    """Returns the bytes of the files in a folder, or of a file; what goes meanwhile has none."""
    total = 0
    for path in (folder, *folder.rglob("*")):
        with contextlib.suppress(OSError):
            total += path.stat().st_size if path.is_file() else 0
    return total


def _remove(entry: Path) -> int:
    """Removes a folder or a file as far as that is allowed; returns the bytes that went."""
    size = _size_bytes(entry)
    if entry.is_dir():
        shutil.rmtree(entry, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            entry.unlink()
    return size - _size_bytes(entry)


def _is_locked(entry: Path) -> bool:
    """Says whether a process is still at work on a folder or a file."""
    try:
        descriptor = os.open(entry, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # a file system without locks
    finally:
        os.close(descriptor)
    return False


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_whole(file: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f"{file.name}.{os.getpid()}")
    with aside.open("w") as stream:
        with contextlib.suppress(OSError):
            fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(file)
