"""Totals go on after a restart, whatever happened to the file, and whatever the disk says to it."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelhost import files
from modelhost.config import ModelsSettings, Settings, StateSettings
from modelhost.host import Host
from modelhost.kept import InUse
from modelhost.pool.keeper import statistics_file
from modelhost.pool.key import ModelKey
from modelhost.pool.statistics import ModelStatistics, Statistics, Timing
from modelhost.runtime.fake import FakeMemory, FakeRuntime

pytestmark = pytest.mark.anyio


def counted() -> ModelStatistics:
    totals, key = Statistics(), ModelKey("a", "1")
    found = totals.of(key)
    timing = Timing(1000)
    timing.input_ns, timing.queue_ns, timing.infer_ns, timing.output_ns, timing.rows = 1, 2, 3, 4, 8
    totals.note_success(found, timing, 100)
    totals.note_failure(key, 7)
    found.note_execution(8, 30, 40)
    return found


def put(folder: Path, text: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "statistics").write_bytes(text)


def test_what_is_read_is_what_was_written() -> None:
    found = counted()
    line = found.to_line(name="a", version="1")
    again = ModelStatistics.from_table(json.loads(line))
    assert again.to_line(name="a", version="1") == line
    assert (again.success.count, again.success.ns, again.inference_count, again.batches[8].infer_ns) == (1, 100, 8, 30)


@pytest.mark.parametrize("value", [-1, 1.5, "1", None, True, []])
def test_what_is_no_count_is_refused(value: object) -> None:
    table = json.loads(counted().to_line())
    with pytest.raises((ValueError, TypeError)):
        ModelStatistics.from_table(table | {"infer_ns": value})


def test_a_file_is_written_where_it_has_changed_and_read_by_the_next(tmp_path: Path) -> None:
    file = statistics_file(tmp_path / "state")
    assert file.read() == []
    file.write([])
    assert not file.folder.exists(), "there was nothing to write"
    file.write([b'{"name":"a"}', b'{"name":"b"}'])
    before = (file.folder / "statistics").stat().st_ino
    file.write([b'{"name":"a"}', b'{"name":"b"}'])
    assert (file.folder / "statistics").stat().st_ino == before
    with pytest.raises(InUse):
        statistics_file(file.folder).read()
    file.close()
    (file.folder / "tmp-left-by-a-crash").write_bytes(b"{")
    assert statistics_file(file.folder).read() == [{"name": "a"}, {"name": "b"}]
    assert sorted(path.name for path in file.folder.iterdir()) == ["lock", "statistics"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda _: b"",
        lambda data: data[:-5],
        lambda data: data.replace(b"12", b"13"),
        lambda _: b"{}\n",
        lambda _: b"[" * 100_000,
        lambda _: b"\xff\xfe\x00" * 9,
        lambda data: data.replace(b'"schema": 1', b'"schema": 2'),
    ],
)
def test_a_damaged_or_foreign_file_is_set_aside_and_told(
    tmp_path: Path, damage: Callable[[bytes], bytes], caplog: pytest.LogCaptureFixture
) -> None:
    file = statistics_file(tmp_path)
    file.write([b'{"name":"a","success":[12,12]}'])
    damaged = damage((tmp_path / "statistics").read_bytes())
    put(tmp_path, damaged)
    assert file.read() == []
    assert (tmp_path / "statistics.damaged").read_bytes() == damaged
    assert not (tmp_path / "statistics").exists()
    assert ["set aside" in record.getMessage() for record in caplog.records] == [True]


# --- in a host -----------------------------------------------------------------------------------------


def host(directory: Path, names: str = "ab", **state: object) -> Host:
    for name in names:
        (directory / name / "1").mkdir(parents=True, exist_ok=True)
        (directory / name / "1" / "model.onnx").write_bytes(b"x")
    machine = FakeMemory()
    return Host(
        Settings(models=ModelsSettings(directory=directory), state=StateSettings(interval_s=0.1, **state)),
        runtime_factory=lambda *_: FakeRuntime(machine),
        probe=machine,
    )


def totals(served: Host) -> dict[str, int]:
    return {key.name: found.success.count for key, found in served.pool.statistics}


def count(served: Host, name: str) -> None:
    statistics = served.pool.statistics
    statistics.note_success(statistics.of(ModelKey(name, "1")), Timing(0), 1)


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "the condition never came to hold"
        await asyncio.sleep(0.01)


async def test_totals_go_on_after_a_restart_without_those_of_models_that_are_gone(tmp_path: Path) -> None:
    async with host(tmp_path) as served:
        for name in "aab":
            count(served, name)
    shutil.rmtree(tmp_path / "b")
    async with host(tmp_path, "a") as served:
        assert totals(served) == {"a": 2}


async def test_they_are_on_disk_soon_without_an_end(tmp_path: Path) -> None:
    file = tmp_path / ".modelhost" / "state" / "statistics"
    async with host(tmp_path) as served:
        count(served, "a")
        await until(file.exists)
        first = file.read_bytes()
        count(served, "a")
        await until(lambda: file.read_bytes() != first)
        assert b'"success": [2, ' in file.read_bytes()


async def test_a_full_disk_is_a_condition_told_once_and_over_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelhost")
    attempts = []

    def full(*_: object) -> None:
        attempts.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async with host(tmp_path) as served:
        with monkeypatch.context() as patched:
            patched.setattr(files, "write_whole", full)
            count(served, "a")
            await until(lambda: len(attempts) > 2)
            (held,) = served.conditions.snapshot()
            assert held.name == "statistics_unwritten"
            assert "No space left on device" in held.text
        await until(lambda: not served.conditions.snapshot())
    told = [record.getMessage() for record in caplog.records if "statistics_unwritten" in record.getMessage()]
    assert [line.partition(":")[0].partition(",")[0] for line in told] == [
        "statistics_unwritten",
        "statistics_unwritten is over",
    ]
    async with host(tmp_path) as served:
        assert totals(served) == {"a": 1}


async def test_a_read_only_folder_is_no_condition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelhost")

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "write_whole", refuse)
    async with host(tmp_path) as served:
        count(served, "a")
        await until(lambda: "statistics are not kept" in caplog.text)
        assert served.conditions.snapshot() == ()


async def test_of_two_hosts_with_one_folder_the_first_keeps_its_totals(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelhost")
    async with host(tmp_path) as first:
        count(first, "a")
        await until((tmp_path / ".modelhost" / "state" / "statistics").exists)
        async with host(tmp_path) as second:
            assert totals(second) == {}
            count(second, "b")
        assert "another host keeps its statistics" in caplog.text
    async with host(tmp_path) as third:
        assert totals(third) == {"a": 1}


async def test_they_are_not_kept_where_that_is_switched_off(tmp_path: Path) -> None:
    async with host(tmp_path, keep_statistics=False) as served:
        count(served, "a")
    assert not (tmp_path / ".modelhost").exists()
