"""What is free in the heap, on the real one: in a process of its own, since in this one others allocate too."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelhost.memory import allocator

MB = 1 << 20

pytestmark = pytest.mark.skipif(
    not hasattr(allocator._libc, "mallinfo2"), reason="free heap memory is known on glibc 2.33 and later only"
)

#: Blocks as a session has them, on a thread as the host's memory thread is one.
_PREAMBLE = """
import ctypes, json, sys, threading
from modelhost.memory import allocator
from modelhost.memory.probe import Probe

allocator.configure()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
said = {}

def take(size, total):
    blocks = [libc.malloc(size) for _ in range(total // size)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    return blocks

def look(name):
    said[name] = allocator.free_bytes(), Probe().committed_bytes()

def run(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    print(json.dumps(said))
"""


def _said(script: str) -> dict[str, Any]:
    found = subprocess.run(
        [sys.executable, "-c", _PREAMBLE + script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    said: dict[str, Any] = json.loads(found.stdout)
    return said


def test_holes_between_blocks_in_use_are_free_until_they_are_used_again() -> None:
    said = _said("""
def work():
    look("start")
    blocks = take(1000, 100 << 20)  # more than one of the allocator's heaps
    look("full")
    for block in blocks[::2]:
        libc.free(block)
    allocator.trim()  # no hole is a page
    look("holes")
    more = take(1000, 30 << 20)
    look("used again")

run(work)
""")
    free = {name: figures[0] for name, figures in said.items()}
    committed = {name: figures[1] for name, figures in said.items()}
    assert free["full"] - free["start"] == pytest.approx(0, abs=MB)
    assert free["holes"] - free["full"] == pytest.approx(50 * MB, abs=3 * MB)
    assert committed["holes"] == pytest.approx(committed["full"], abs=3 * MB)
    assert free["holes"] - free["used again"] == pytest.approx(30 * MB, abs=3 * MB)
    assert committed["used again"] == pytest.approx(committed["holes"], abs=3 * MB)


def test_what_a_trim_has_returned_is_not_free_in_the_heap_though_the_allocator_keeps_it() -> None:
    said = _said("""
def work():
    look("start")
    blocks = take(60000, 60 << 20)
    look("full")
    for block in blocks[::2]:
        libc.free(block)
    look("holes")
    allocator.trim()
    look("trimmed")
    said["on lists"] = libc.mallinfo2().fordblks

libc.mallinfo2.restype = allocator._MallInfo
run(work)
""")
    on_lists = said.pop("on lists")
    free = {name: figures[0] for name, figures in said.items()}
    committed = {name: figures[1] for name, figures in said.items()}
    assert free["holes"] - free["full"] == pytest.approx(30 * MB, abs=3 * MB)
    assert committed["full"] - committed["trimmed"] > 25 * MB
    assert free["holes"] - free["trimmed"] == pytest.approx(committed["full"] - committed["trimmed"], abs=3 * MB)
    assert on_lists > 28 * MB


def test_mappings_of_their_own_are_no_heap() -> None:
    said = _said("""
import mmap

def work():
    blocks = take(60000, 60 << 20)
    for block in blocks[::2]:
        libc.free(block)
    allocator.trim()  # so that the allocator has more on its lists than is resident
    look("trimmed")
    # The address of a heap is a multiple of 64 MB; so are two addresses in this.
    with mmap.mmap(-1, 192 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as own:
        for page in range(0, len(own), mmap.PAGESIZE):
            own[page] = 1
        allocator._heaps._find()
        look("mapped")
    for block in take(1 << 20, 20 << 20):
        libc.free(block)
    look("freed")

run(work)
""")
    free = {name: figures[0] for name, figures in said.items()}
    assert said["mapped"][1] - said["trimmed"][1] > 190 * MB
    assert free["mapped"] == pytest.approx(free["trimmed"], abs=MB)
    assert free["freed"] == pytest.approx(free["trimmed"], abs=MB)


def test_heaps_that_cannot_be_found_are_not_looked_for_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    heaps, looked = allocator._Heaps(), []
    monkeypatch.setattr(heaps, "_find", lambda: looked.append(1))
    assert [heaps.free_bytes() for _ in range(5)] == [0] * 5
    assert len(looked) == 1


def test_where_the_kernel_calls_every_page_resident_nothing_is_known_to_be_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(allocator, "_resident_bytes", lambda start, size_bytes: size_bytes)
    assert not allocator._knows_residence()
    assert allocator._Heaps().free_bytes() == 0


def test_elsewhere_than_on_glibc_nothing_is_known_to_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_libc", None)
    assert allocator._Heaps().free_bytes() == 0


def test_without_the_files_of_proc_nothing_is_known_to_be_free(monkeypatch: pytest.MonkeyPatch) -> None:
    heaps = allocator._Heaps()

    def missing() -> None:
        raise FileNotFoundError(2, "No such file or directory", "/proc/self/maps")

    monkeypatch.setattr(heaps, "_find", missing)
    assert heaps.free_bytes() == 0
    assert heaps.free_bytes() == 0
