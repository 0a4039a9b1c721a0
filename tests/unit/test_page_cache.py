"""What the page cache holds of files: real files and the real kernel, then the sums over many models."""

from __future__ import annotations

import asyncio
import mmap
import os
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelhost.memory import page_cache
from modelhost.memory.page_cache import (
    FilePages,
    PageCache,
    Weights,
    by_cachestat,
    by_mincore,
    look_up,
    mapped_bytes,
    sum_up,
)

MB = 1 << 20
SIZE_BYTES = 8 * MB + 100  # the last page is not a whole one

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux is asked")


def forget(file: Path) -> None:
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file on disk, none of which is in the page cache."""
    path = tmp_path / "weights.bin"
    with path.open("wb") as stream:
        stream.write(os.urandom(SIZE_BYTES))
        os.fsync(stream.fileno())
    forget(path)
    if in_cache(by_mincore, path):
        pytest.skip("the temporary directory lies in memory: its files are never out of it")
    return path


def in_cache(way, file: Path) -> int | None:
    with file.open("rb") as stream:
        return way(stream.fileno()) if way is by_cachestat else way(stream.fileno(), file.stat().st_size)


def read_exactly(file: Path, offset: int, length: int) -> None:
    """Reads without read-ahead, which goes on when the read has returned."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


# --- the kernel -------------------------------------------------------------------------------------


@linux
def test_a_file_that_was_read_is_in_cache_and_one_that_was_dropped_is_not(file: Path) -> None:
    assert look_up(file) == FilePages(SIZE_BYTES, 0)
    file.read_bytes()
    assert look_up(file) == FilePages(SIZE_BYTES, SIZE_BYTES)
    forget(file)
    assert look_up(file) == FilePages(SIZE_BYTES, 0)


@linux
def test_a_file_that_was_read_in_part_is_in_cache_in_part(file: Path) -> None:
    read_exactly(file, 3 * MB, 2 * MB)
    pages = look_up(file)
    assert pages is not None
    assert pages.cached_bytes == 2 * MB


@linux
def test_both_ways_of_asking_agree(file: Path) -> None:
    if in_cache(by_cachestat, file) is None:
        pytest.skip("this kernel has no cachestat, or its sandbox does not let it through")
    for offset, length in ((0, 0), (2 * MB, 1 * MB), (0, SIZE_BYTES)):
        read_exactly(file, offset, length)
        assert in_cache(by_cachestat, file) == in_cache(by_mincore, file)


@linux
def test_a_look_leaves_nothing_behind(file: Path) -> None:
    maps, descriptors = Path("/proc/self/maps"), Path("/proc/self/fd")
    before = (maps.read_text().count(str(file)), len(list(descriptors.iterdir())))
    for _ in range(5):
        look_up(file)
        assert in_cache(by_mincore, file) == 0
    assert (maps.read_text().count(str(file)), len(list(descriptors.iterdir()))) == before


@linux
def test_none_of_cachestat_is_asked_again_since_it_is_blind_on_overlays(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.read_bytes()
    monkeypatch.setattr(page_cache, "by_cachestat", lambda descriptor: 0)
    assert look_up(file) == FilePages(SIZE_BYTES, SIZE_BYTES)


@linux
def test_a_kernel_without_cachestat_is_asked_the_other_way(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "_CACHESTAT", 100_000)
    assert in_cache(by_cachestat, file) is None
    file.read_bytes()
    assert look_up(file) == FilePages(SIZE_BYTES, SIZE_BYTES)


@contextmanager
def effective_user(user: int) -> Iterator[None]:
    os.seteuid(user)
    try:
        yield
    finally:
        os.seteuid(0)


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to be somebody else")
@pytest.mark.parametrize("has_cachestat", [True, False])
def test_somebody_else_gets_no_figure_instead_of_a_false_one(
    file: Path, monkeypatch: pytest.MonkeyPatch, has_cachestat: bool
) -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own is for its user only
        theirs = Path(folder) / "weights.bin"
        file.rename(theirs)
        os.chmod(folder, 0o755)
        os.chmod(theirs, 0o444)
        if not has_cachestat:
            monkeypatch.setattr(page_cache, "by_cachestat", lambda descriptor: None)
        with effective_user(12345):
            pages, claimed = look_up(theirs), in_cache(by_mincore, theirs)
    if not claimed:
        pytest.skip("this kernel tells everybody the truth")
    assert pages == FilePages(SIZE_BYTES, None)


@linux
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to be somebody else")
def test_a_file_that_may_not_be_opened_has_a_size_and_no_figure(file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        theirs = Path(folder) / "weights.bin"
        file.rename(theirs)
        os.chmod(folder, 0o755)
        os.chmod(theirs, 0o400)
        with effective_user(12345):
            assert look_up(theirs) == FilePages(SIZE_BYTES, None)


def test_a_file_that_has_gone_is_none_and_an_empty_one_is_all_there(tmp_path: Path) -> None:
    assert look_up(tmp_path / "nothing") is None
    (tmp_path / "empty").touch()
    assert look_up(tmp_path / "empty") == FilePages(0, 0)


def test_elsewhere_than_on_linux_only_the_size_is_known(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_cache, "_libc", None)
    assert look_up(file) == FilePages(SIZE_BYTES, None)


# --- sums -------------------------------------------------------------------------------------------

A, B, SHARED = Path("a"), Path("b"), Path("shared")


def test_each_model_has_all_of_its_files_and_the_total_has_a_shared_one_once() -> None:
    pages = {A: FilePages(10, 5), B: FilePages(20, 20), SHARED: FilePages(100, 50)}
    found = sum_up({"one": (A, SHARED), "two": (B, SHARED), "heap": ()}, pages)
    assert found.models == {"one": Weights(110, 55), "two": Weights(120, 70)}
    assert found.total == Weights(130, 75)
    assert found.total.cached_share == pytest.approx(75 / 130)


@pytest.mark.parametrize("lost", [None, FilePages(20, None)])
def test_one_unknown_file_makes_its_model_and_the_total_unknown(lost: FilePages | None) -> None:
    found = sum_up({"one": (A,), "two": (A, B)}, {A: FilePages(10, 5), B: lost})
    assert found.models["one"] == Weights(10, 5)
    assert found.models["two"].cached_bytes is None
    assert found.total.cached_bytes is None
    assert found.total.cached_share is None
    assert found.total.weights_bytes == 10 + (0 if lost is None else 20)


def test_without_weights_there_is_no_share() -> None:
    found = sum_up({"heap": ()}, {})
    assert (found.models, found.total) == ({}, Weights(0, 0))
    assert found.total.cached_share is None


# --- looking now and then -----------------------------------------------------------------------------


class Looks:
    """Counts the looks at each file, and holds them up where told to."""

    def __init__(self) -> None:
        self.files: list[Path] = []
        self.threads: set[int] = set()
        self.may_end = threading.Event()
        self.may_end.set()
        self.begun = threading.Event()
        self.now = 0.0

    def __call__(self, file: Path) -> FilePages | None:
        self.files.append(file)
        self.threads.add(threading.get_ident())
        self.begun.set()
        assert self.may_end.wait(10)
        return FilePages(10, len(self.files))

    def clock(self) -> float:
        return self.now


@pytest.fixture
def looks() -> Looks:
    return Looks()


@pytest.fixture
def cache(looks: Looks) -> Iterator[PageCache]:
    cache = PageCache(kept_s=1.0, look_up=looks, clock=looks.clock)
    yield cache
    looks.may_end.set()
    cache.close()


@pytest.mark.anyio
async def test_a_look_is_not_on_the_event_loop_and_serves_who_comes_soon_after(cache: PageCache, looks: Looks) -> None:
    first = await cache.read({"one": (A,)})
    assert threading.get_ident() not in looks.threads
    looks.now += 0.9
    assert await cache.read({"one": (A,)}) == first
    looks.now += 0.2
    assert (await cache.read({"one": (A,)})).total == Weights(10, 2)


@pytest.mark.anyio
async def test_a_new_file_is_looked_up_at_once_and_the_others_are_not(cache: PageCache, looks: Looks) -> None:
    await cache.read({"one": (A,)})
    await cache.read({"one": (A,), "two": (B,)})
    assert looks.files == [A, B]


@pytest.mark.anyio
async def test_a_file_that_nobody_maps_is_forgotten(cache: PageCache, looks: Looks) -> None:
    await cache.read({"one": (A,), "two": (B,)})
    assert (await cache.read({"one": (A,)})).total.weights_bytes == 10
    await cache.read({"one": (A,), "two": (B,)})
    assert sorted(looks.files) == [A, B, B]


@pytest.mark.anyio
async def test_who_comes_during_a_look_shares_it(cache: PageCache, looks: Looks) -> None:
    looks.may_end.clear()
    readers = [asyncio.create_task(cache.read({"one": (A,)})) for _ in range(5)]
    assert await asyncio.to_thread(looks.begun.wait, 10)
    looks.may_end.set()
    assert [(await reader).total for reader in readers] == [Weights(10, 1)] * 5
    assert looks.files == [A]


@pytest.mark.anyio
async def test_a_reader_who_leaves_does_not_hold_up_the_next(cache: PageCache, looks: Looks) -> None:
    looks.may_end.clear()
    reader = asyncio.create_task(cache.read({"one": (A,)}))
    assert await asyncio.to_thread(looks.begun.wait, 10)
    reader.cancel()
    await asyncio.wait([reader])
    looks.may_end.set()
    assert (await cache.read({"one": (A,)})).total == Weights(10, 2)


# --- where the kernel does not say ---------------------------------------------------------------------


@linux
def test_what_is_mapped_counts_file_by_file(tmp_path: Path) -> None:
    paths = [tmp_path / "a weight file", tmp_path / "b"]
    for path in paths:
        path.write_bytes(b"x" * (4 << 20))
    with paths[0].open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped_bytes(paths)[paths[0]] < 4 << 20
        sum(mapped[::4096])
        assert mapped_bytes(paths) == {paths[0]: 4 << 20}
    assert mapped_bytes(paths) == {}


@pytest.mark.anyio
async def test_files_of_others_have_what_this_process_has_mapped(tmp_path: Path) -> None:
    cache = PageCache(
        look_up=lambda file: FilePages(100, None if file.name == "theirs" else 30), mapped_bytes=lambda _: {theirs: 60}
    )
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    try:
        found = await cache.read({"a": (ours,), "b": (theirs,)})
        assert {key: weights.cached_bytes for key, weights in found.models.items()} == {"a": 30, "b": 60}
        assert found.total.cached_bytes == 90
    finally:
        cache.close()
