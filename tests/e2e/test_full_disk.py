"""A disk that is full, a real one: the host serves on, says so everywhere, and goes on when there is room."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from host_process import HostProcess, running_host
from test_on_load import answer, artifacts, dense, memory, model_of, times24

_MB = 1 << 20


@contextlib.contextmanager
def small_disk(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)], capture_output=True, text=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def conditions(host: HostProcess) -> set[str]:
    with urllib.request.urlopen(f"{host.url}/v2/health/ready", timeout=60) as reply:
        body = json.load(reply)
    assert body["ready"]
    return set(body.get("conditions", ()))


def until(host: HostProcess, wanted: set[str]) -> None:
    end = time.monotonic() + 30
    while (found := conditions(host)) != wanted:
        assert time.monotonic() < end, f"{found}, expected {wanted}"
        time.sleep(0.02)


def test_on_a_full_disk_the_host_serves_on_and_says_so_until_there_is_room(tmp_path: Path) -> None:
    models = tmp_path / "models"
    row = dense(8, "dense", models)
    other = dense(6, "other", models)
    with small_disk(tmp_path / "disk", "4m") as disk:
        (disk / "filler").write_bytes(bytes(4 * _MB - (64 << 10)))
        settings = {"MODELHOST_PREPARE_CACHE": str(disk / "cache"), "MODELHOST_STATE_INTERVAL_S": "0.1"}
        with running_host(tmp_path, models, **settings) as host:
            assert conditions(host) == set()
            assert answer(host.url, "dense", row, [1, len(row)]) == times24(row)
            with contextlib.suppress(OSError), (disk / "rest").open("wb", buffering=0) as rest:
                while rest.write(bytes(4096)):
                    pass
            assert answer(host.url, "dense", row, [1, len(row)]) == times24(row)
            until(host, {"artifacts_unwritten", "statistics_unwritten"})
            assert {held["name"] for held in memory(host)["conditions"]} == conditions(host)
            with urllib.request.urlopen(f"{host.url}/metrics", timeout=60) as reply:
                assert 'modelhost_condition{name="artifacts_unwritten"} 1' in reply.read().decode()
            assert model_of(host, "dense")["weights_bytes"] is None, "it was to be served from the heap"
            assert host.log.count("artifacts_unwritten: ") == 1
            subprocess.run(["mount", "-o", "remount,size=100m", str(disk)], check=True)
            until(host, set())
            assert answer(host.url, "other", other, [1, len(other)]) == times24(other)
            assert model_of(host, "other")["weights_bytes"] is not None
        assert not list(disk.rglob("tmp-*"))
        with running_host(tmp_path, models, **settings) as host:  # what was only measured is prepared now
            assert answer(host.url, "dense", row, [1, len(row)]) == times24(row)
            assert model_of(host, "dense")["weights_bytes"] is not None
            with urllib.request.urlopen(f"{host.url}/v2/models/dense/stats", timeout=60) as reply:
                assert json.load(reply)["model_stats"][0]["inference_count"] == 3
    assert artifacts(models) == []
