"""Artifacts on disk: where they are, whether they can be trusted, which have to go.

    <cache>/<key>/manifest.json, model.onnx, model.bin     one artifact, renamed into place when whole
    <cache>/index/<hash of the model's place>.json          which key belongs to a file as it is now

The key is a hash of the model's content and of all that its artifact depends on. Reading gigabytes to
compute it would make a start slow, so the index remembers it for a file's size and time; a copied or
touched file is read once.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from modelhost.prepare.manifest import Manifest

log = logging.getLogger("modelhost")

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
    custom_op_libraries: tuple[Path, ...] = ()
    """Where the libraries with added operators are; `options` has their content."""

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
        self._unwritten: dict[Path, dict[str, Any]] = {}
        self._rejected: dict[str, int] = {}
        self._told: dict[str, str] = {}

    def find(
        self, file: Path, external: tuple[str, ...] | None = None, dimensions: Dimensions | None = None
    ) -> Artifact | None:
        """Returns the artifact of a model file, or None where there is none that can be used.

        With `external` (the model's other files) a file that the index does not know is read, to see
        whether an artifact came with it from elsewhere. Without `dimensions`, whatever it was made with.
        """
        key = self._known_key(file, dimensions)
        if key is None and external is not None and os.path.isdir(self.cache):
            with contextlib.suppress(OSError):
                key = self.key_of(file, external, dimensions or _NONE)
        artifact = None if key is None else self.get(key)
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
        key = known or (self.key_of(file, external, dimensions) if os.path.isdir(self.cache) else "")
        if not key or not os.path.isdir(self.cache / key):
            if former is None:
                return Standing("missing", "")
            return Standing("stale", "made of other content, for another runtime or CPU, or with other sizes")
        found = self._examine(key)
        return Standing("damaged", found) if isinstance(found, str) else Standing("prepared", "", found)

    def token(self, file: Path) -> int:
        """Returns a number that changes when the file gets or loses its artifact; 0 for none."""
        key = self._known_key(file, None)
        return int(key[:15], 16) if key is not None and self.stamp(key) else 0

    def stamp(self, key: str) -> int:
        """Returns a number that changes when the artifact is made again; 0 where there is none."""
        try:
            return (self.cache / key / _MANIFEST).stat().st_mtime_ns
        except OSError:
            return 0

    def get(self, key: str) -> Artifact | None:
        """Returns the artifact of a key, or None where there is none that can be used."""
        found = self._examine(key)
        if isinstance(found, Artifact):
            return found
        if os.path.isdir(self.cache / key) and self._told.get(key) != found:
            self._told[key] = found
            log.warning("the artifact %s is damaged and not used: %s", self.cache / key, found)
        return None

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
        try:
            _write_whole(self._index_file(file), json.dumps(entry))
        except OSError:  # so that a read-only cache does not have the model read at every look
            self._unwritten[file] = entry
        return key

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """Yields a folder to build an artifact in; what is left of it at the end is removed. Raises OSError.

        It is locked meanwhile, so that another process's `clean_up` can tell it from what a crash left.
        """
        self.cache.mkdir(parents=True, exist_ok=True)
        folder, lock = self._make_aside()
        try:
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
        while True:
            former = self._new_aside()
            with contextlib.suppress(FileNotFoundError):
                target.rename(former)
                shutil.rmtree(former, ignore_errors=True)
            try:
                folder.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
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
        """Removes an artifact that proved unusable; where that is not allowed, it is not used any more."""
        self._rejected[key] = self.stamp(key)
        shutil.rmtree(self.cache / key, ignore_errors=True)

    def clean_up(self, *, max_bytes: int | None = None, in_use: frozenset[str] = frozenset()) -> int:
        """Removes what crashes left behind, then the least recently used artifacts over `max_bytes`.

        Returns the bytes that were removed. An artifact in use never goes.
        """
        removed = 0
        found: list[tuple[float, int, Path]] = []
        for entry in _entries(self.cache):
            if entry.name.startswith(_ASIDE):
                removed += _remove_left(entry)
            elif max_bytes is not None and _KEY.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # another process was first
                    found.append((entry.stat().st_mtime, _size_bytes(entry), entry))
        for entry in _entries(self.cache / _INDEX):
            if entry.suffix != ".json":
                removed += _remove_left(entry)
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

    def _new_aside(self) -> Path:
        return self.cache / f"{_ASIDE}{secrets.token_hex(8)}"

    def _make_aside(self) -> tuple[Path, int]:
        """Makes a folder, which others may read as the umask says, and locks it. Raises OSError."""
        while True:
            folder = self._new_aside()
            folder.mkdir()
            lock = -1
            try:
                lock = os.open(folder, os.O_RDONLY)
                fcntl.flock(lock, fcntl.LOCK_EX)
                folder.stat()
            except FileNotFoundError:  # another process's `clean_up` came before the lock
                if lock >= 0:
                    os.close(lock)
            except OSError:
                folder.rmdir()
                raise
            else:
                return folder, lock

    def _known_key(self, file: Path, dimensions: Dimensions | None) -> str | None:
        """Returns the key that the index has for the file as it is now; `dimensions` None: with any sizes."""
        reads: tuple[Callable[[Path], Any], ...] = (self._written_entry, self._unwritten.get)
        for read in reads:
            try:
                entry = read(file)
                is_same = entry["stamp"] == _stamp(file, tuple(entry["external"]))
                made_with = entry["dimensions"] if dimensions is None else dict(dimensions)
                identity = self.identity.key_for("", made_with)
                if is_same and entry["identity"] == identity and _KEY.fullmatch(entry["key"]):
                    return str(entry["key"])
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                continue
        return None

    def _written_entry(self, file: Path) -> Any:
        return json.loads(self._index_file(file).read_text())

    def _former_key(self, file: Path) -> str | None:
        """Returns the key that the index has for what the file once was, where that artifact is still there."""
        try:
            key = self._written_entry(file)["key"]
            return str(key) if _KEY.fullmatch(key) and os.path.isdir(self.cache / key) else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def _index_file(self, file: Path) -> Path:
        place = os.path.relpath(file, self._models)
        return self.cache / _INDEX / f"{hashlib.sha256(place.encode()).hexdigest()[:32]}.json"

    def _examine(self, key: str) -> Artifact | str:
        """Reads a manifest and checks that its files are there, whole, and those that it speaks of.

        Returns what is wrong where something is. A file with the size and the time that it was written
        with is trusted; one that was copied or touched since is read once in the life of the process.
        """
        folder = self.cache / key
        try:
            manifest = Manifest.from_json((folder / _MANIFEST).read_text())
            if self._rejected.get(key) == self.stamp(key):
                return "it could not be opened"
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


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _remove_left(entry: Path) -> int:
    """Removes a folder or a file that no process is at work on; returns the bytes that went."""
    try:
        descriptor = os.open(entry, os.O_RDONLY)
    except OSError:
        return _remove(entry)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return 0
        return _remove(entry)  # locked: who has just made it sees that it is gone
    finally:
        os.close(descriptor)


def _sync(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_whole(file: Path, text: str) -> None:
    """Writes a small file so that it is there whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # Not by the process's number: hosts in containers share a cache, and are all number 1.
    aside = file.with_name(f"{file.name}.{secrets.token_hex(8)}")
    try:
        with aside.open("w") as stream:
            with contextlib.suppress(OSError):
                fcntl.flock(stream.fileno(), fcntl.LOCK_EX)
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        aside.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
