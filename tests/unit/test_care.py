"""What an open host sees to by itself."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from modelhost.care import CRITICAL_S, MEMORY_CRITICAL, REPOSITORY_UNREADABLE, Care
from modelhost.config import MemorySettings, ModelsSettings, RepositorySettings, Settings
from modelhost.errors import ConfigError, HostClosed, ModelNotFound
from modelhost.host import Host
from modelhost.runtime.fake import FakeMemory, FakeRuntime, FakeScript

pytestmark = pytest.mark.anyio
MB = 1 << 20


def host_of(directory: Path, **repository: object) -> Host:
    file = directory / "a/1/model.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    memory = FakeMemory()
    settings = Settings(
        models=ModelsSettings(directory=directory),
        memory=MemorySettings(sample_interval_s=0.01),
        repository=RepositorySettings(**repository),
    )
    scripts = {"a": FakeScript(), "b": FakeScript()}
    return Host(settings, runtime_factory=lambda settings, budgets: FakeRuntime(memory, scripts), probe=memory)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(10):
        while not holds():  # noqa: ASYNC110 - there is no event for what a thread finds on disk
            await asyncio.sleep(0.005)


async def test_a_host_whose_memory_stays_critical_with_nothing_to_evict_is_not_ready(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        now = [0.0]
        care = Care(host.settings, host.memory, host.pool, host.conditions, clock=lambda: now[0])
        memory = host.memory.probe
        assert isinstance(memory, FakeMemory)
        memory.other_bytes = 150 * MB
        host.memory.memory_info()
        care.look_at_memory()
        now[0] = CRITICAL_S - 1
        care.look_at_memory()
        assert host.is_ready
        now[0] = CRITICAL_S
        care.look_at_memory()
        assert not host.is_ready
        assert host.is_accepting
        assert host.conditions.holds(MEMORY_CRITICAL)
        memory.other_bytes = 0
        host.memory.memory_info()
        care.look_at_memory()
        assert host.is_ready


async def test_a_model_that_could_leave_is_no_reason_not_to_be_ready(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        now = [0.0]
        care = Care(host.settings, host.memory, host.pool, host.conditions, clock=lambda: now[0])
        async with host.pool.lease("a") as lease:
            memory = host.memory.probe
            assert isinstance(memory, FakeMemory)
            memory.other_bytes = 150 * MB
            host.memory.memory_info()
            care.look_at_memory()
            now[0] = CRITICAL_S
            care.look_at_memory()
            assert not host.is_ready  # all that is loaded is in use
            lease.end()
            care.look_at_memory()
            assert host.is_ready


async def test_what_comes_and_goes_on_disk_is_seen_where_it_is_watched(tmp_path: Path) -> None:
    models = tmp_path / "models"
    async with host_of(models, watch=True, watch_interval=0.01) as host:
        (models / "b/1").mkdir(parents=True)
        (models / "b/1/model.onnx").write_bytes(b"x")
        await until(lambda: host.pool.catalog.names == ("a", "b"))
        async with host.pool.lease("b"):
            shutil.rmtree(models / "b")
            await until(lambda: host.pool.catalog.names == ("a",))
        await until(lambda: not host.pool.snapshot().models)
        with pytest.raises(ModelNotFound):
            await host.pool.acquire("b")
        models.rename(tmp_path / "away")
        await until(lambda: host.conditions.holds(REPOSITORY_UNREADABLE))
        assert host.pool.catalog.names == ("a",)
        (tmp_path / "away").rename(models)
        await until(lambda: not host.conditions.holds(REPOSITORY_UNREADABLE))


async def test_a_reload_asks_everybody_and_stops_at_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    called = []

    def refuse() -> None:
        raise ConfigError("keys.toml is not TOML")

    async with host_of(tmp_path) as host:
        host.on_reload += [refuse, lambda: called.append(1)]
        changed = ModelsSettings(directory=tmp_path, pinned=("a",))
        await host.reload(Settings(models=changed, memory=MemorySettings(limit=160 << 20)))
        assert called == [1]
        assert host.memory.thresholds.limit_bytes == 160 << 20
        await until(lambda: host.budgets.activation_ceiling_bytes == 40 << 20)
        assert "not reloaded: keys.toml is not TOML" in caplog.text
        assert host.pool.catalog.options(host.pool.catalog.find("a")).pinned


async def test_a_host_that_drains_takes_no_new_work(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        assert host.is_ready
        host.drain()
        assert (host.is_ready, host.is_accepting) == (False, False)
        with pytest.raises(HostClosed):
            host.check_accepting()
