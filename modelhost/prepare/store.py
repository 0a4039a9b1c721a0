"""Artifacts on disk: where they are, whether they can be trusted, which have to go.

    <cache>/<key>/manifest.json, model.onnx, model.bin     one artifact, renamed into place when whole
    <cache>/index/<hash of the model's place>.json          which key belongs to a file as it is now
    <cache>/tmp-<random>                                    what is being written, or was when a process was killed
    <cache>/tmp-turn-<key>                                  locked by who prepares this key, so that others wait for it

The key is a hash of the model's content and of all that its artifact depends on.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from modelhost import files
from modelhost.prepare.index import KEY, NO_DIMENSIONS, ArtifactIndex, Dimensions, Identity
from modelhost.prepare.manifest import Manifest

log = logging.getLogger("modelhost")

_MANIFEST: Final = "manifest.json"
_FILES: Final = ("model.onnx", "model.bin")

#: What is written to see whether anything can be.
_ROOM_BYTES: Final = 1 << 20

#: Sessions map these files, and a process dies that reads a page which is no longer there: nobody is to write to
#: them any more, their owner included. They are replaced and removed as a whole.
_WRITABLE: Final = 0o222


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
        self.cache, self.identity = cache, identity
        self._index = ArtifactIndex(cache, models, identity)
        self._checked: dict[Path, tuple[int, bool]] = {}
        self._rejected: dict[str, int] = {}
        self._told: dict[str, str] = {}

    def find(
        self, file: Path, external: tuple[str, ...] | None = None, dimensions: Dimensions | None = None
    ) -> Artifact | None:
        """Returns the artifact of a model file, or None where there is none that can be used.

        With `external` (the model's other files) a file that the index does not know is read, to see
        whether an artifact came with it from elsewhere. Without `dimensions`, whatever it was made with.
        """
        key = self._index.known_key(file, dimensions)
        if key is None and external is not None and os.path.isdir(self.cache):
            with contextlib.suppress(OSError):
                key = self.key_of(file, external, dimensions or NO_DIMENSIONS)
        artifact = None if key is None else self.get(key)
        if artifact is not None:
            with contextlib.suppress(OSError):
                os.utime(artifact.directory)  # last used
        return artifact

    def look(self, file: Path, external: tuple[str, ...] = (), dimensions: Dimensions = NO_DIMENSIONS) -> Standing:
        """Returns how a model file stands, for people; reads the file where the index does not know it.

        Raises OSError where the file cannot be read.
        """
        known = self._index.known_key(file, dimensions)
        former = self._index.former_key(file) if known is None else None
        key = known or (self.key_of(file, external, dimensions) if os.path.isdir(self.cache) else "")
        if not key or not os.path.isdir(self.cache / key):
            if former is None:
                return Standing("missing", "")
            return Standing("stale", "made of other content, for another runtime or CPU, or with other sizes")
        found = self._examine(key)
        return Standing("damaged", found) if isinstance(found, str) else Standing("prepared", "", found)

    def token(self, file: Path) -> int:
        """Returns a number that changes when the file gets or loses its artifact; 0 for none."""
        key = self._index.known_key(file, None)
        return int(key[:15], 16) if key is not None and self.stamp(key) else 0

    def stamp(self, key: str) -> int:
        """Returns a number that changes when the artifact is made again; 0 where there is none."""
        try:
            return os.stat(f"{self.cache}/{key}/{_MANIFEST}").st_mtime_ns
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

    def key_of(self, file: Path, external: tuple[str, ...] = (), dimensions: Dimensions = NO_DIMENSIONS) -> str:
        """Returns the key of a model file; reads the file where the index does not know it. Raises OSError."""
        return self._index.key_of(file, external, dimensions)

    @contextlib.contextmanager
    def aside(self) -> Iterator[Path]:
        """Yields a folder to build an artifact in; what is left of it at the end is removed. Raises OSError.

        It is locked meanwhile, so that another process's `clean_up` can tell it from what a crash left.
        """
        with files.folder_aside(self.cache) as folder:
            yield folder

    @contextlib.contextmanager
    def turn(self, key: str, *, gives_up: Callable[[], bool]) -> Iterator[None]:
        """Waits while another host prepares what has this key, until `gives_up` says so. Raises OSError."""
        with files.turn(self.cache, f"turn-{key}", gives_up=gives_up):
            yield

    def adopt(self, folder: Path, manifest: Manifest) -> Artifact:
        """Makes a built folder the artifact of its key, at once and whole. Raises OSError.

        Only `model.onnx` and `model.bin` are taken along.
        """
        found = {}
        for path in folder.iterdir():
            if path.name not in _FILES:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
                continue
            stat = path.stat()
            # In whole seconds, which archives and image layers keep: what comes out of them is trusted unread.
            os.utime(path, (int(stat.st_atime), int(stat.st_mtime)))
            files.sync_file(path)
            stat = path.stat()
            path.chmod(stat.st_mode & 0o777 & ~_WRITABLE)
            found[path.name] = (stat.st_size, stat.st_mtime_ns, files.digest_of(path))
        manifest = replace(manifest, files=found)
        files.write_whole(folder / _MANIFEST, manifest.to_json().encode())  # its folder is synced with it
        target = self.cache / manifest.key
        while True:
            if target.exists():
                files.remove(target)
            try:
                folder.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            else:
                files.sync_folder(self.cache)
                return Artifact(target, manifest)

    def grow(self, artifact: Artifact, resident_bytes: int) -> None:
        """Writes a larger figure into a manifest, as far as the cache can be written."""
        found = artifact.manifest
        grown = replace(found, resident_bytes=resident_bytes, peak_bytes=max(found.peak_bytes, resident_bytes))
        with contextlib.suppress(OSError):
            files.write_whole(artifact.directory / _MANIFEST, grown.to_json().encode(), aside_in=self.cache)

    def size_bound(self, configured: int | Literal["auto"]) -> int:
        """Returns the bytes that all artifacts may have; `auto`: half of what is free, theirs counted as free."""
        if configured != "auto":
            return configured
        with contextlib.suppress(OSError):
            return (shutil.disk_usage(self.cache).free + files.size_bytes(self.cache)) // 2
        return sys.maxsize

    def has_room(self, size_bytes: int) -> bool:
        """Says whether the cache can be written and has so many bytes left; blocks."""
        try:
            with files.folder_aside(self.cache) as folder:
                files.write_whole(folder / "room", bytes(_ROOM_BYTES))
            return shutil.disk_usage(self.cache).free >= size_bytes
        except OSError:
            return False

    def reject(self, key: str) -> None:
        """Removes an artifact that proved unusable; where that is not allowed, it is not used any more."""
        self._rejected[key] = self.stamp(key)
        if os.path.isdir(self.cache / key):
            files.remove(self.cache / key)

    def clean_up(self, *, max_bytes: int | None = None, in_use: frozenset[str] = frozenset()) -> int:
        """Removes what crashes left behind, then the least recently used artifacts over `max_bytes`.

        Returns the bytes that were removed. An artifact in use never goes.
        """
        removed = files.remove_left(self.cache)
        if max_bytes is None:
            return removed
        found: list[tuple[float, int, Path]] = []
        for entry in files.entries(self.cache):
            if KEY.fullmatch(entry.name):
                with contextlib.suppress(OSError):  # another process was first
                    found.append((entry.stat().st_mtime, files.size_bytes(entry), entry))
        total = sum(size for _, size, _ in found)
        for _, _, entry in sorted(found):
            if total <= max_bytes:
                break
            if entry.name not in in_use:
                gone = files.remove(entry)
                total -= gone
                removed += gone
        return removed

    # --- inside --------------------------------------------------------------------------------------

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
            known = self._checked[file] = (mtime_ns, files.digest_of(file) == digest)
        return known[1]
