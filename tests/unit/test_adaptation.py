"""A host whose thresholds follow what is learnt: what is put in force, shown, and kept for the next host."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path

import pytest

from modelhost.adaptation import Adaptation, policy_file
from modelhost.config import MemorySettings, ModelsSettings, Settings, StateSettings
from modelhost.host import Host
from modelhost.memory import Level
from modelhost.runtime.fake import FakeMemory, FakeRuntime

pytestmark = pytest.mark.anyio

MB = 1 << 20


def host(directory: Path, *, limit_mb: int = 256, **state: object) -> Host:
    for name in "ab":
        (directory / name / "1").mkdir(parents=True, exist_ok=True)
        (directory / name / "1" / "model.onnx").write_bytes(b"x")
    machine = FakeMemory(limit_mb * MB)
    return Host(
        Settings(
            models=ModelsSettings(directory=directory),
            memory=MemorySettings(policy="adaptive"),
            state=StateSettings(**state),
        ),
        runtime_factory=lambda *_: FakeRuntime(machine),
        probe=machine,
    )


class Lived:
    """An open host's adaptation on a clock of its own, with totals that tests count up."""

    def __init__(self, served: Host) -> None:
        self.host, self.now = served, 0.0
        self.adaptation = Adaptation(served.memory, served.pool, served._guards, clock=lambda: self.now)

    def live(self, seconds: int) -> None:
        """Seconds in which runs are many and small, and models leave for want of room."""
        for _ in range(seconds):
            self.now += 1
            self.host.pool.runner.started += 20
            self.host.pool.counters.evictions += 1
            self.adaptation.look()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_fixed_host_has_no_policy(tmp_path: Path) -> None:
    async with Host(
        Settings(models=ModelsSettings(directory=tmp_path)),
        runtime_factory=lambda *_: FakeRuntime(FakeMemory()),
        probe=FakeMemory(),
    ) as served:
        assert served.policy is None
        assert served.pool.activations.ceiling_bytes == 64 * MB


async def test_a_change_is_in_force_and_an_event_with_its_reason_and_a_line_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelhost")
    async with host(tmp_path) as served:
        lived = Lived(served)
        lived.live(300)
        await settled()
        found = served.memory.thresholds
        assert found.critical_bytes == 216 * MB
        assert served.memory.memory_info().critical_bytes == 216 * MB
        assert served.pool.activations.ceiling_bytes == (40 - 16) * MB
        assert served.budgets.decoding_bytes == 16 * MB, "what bodies may take stays"
        events = [event.as_dict() for event in served.memory.history.snapshot() if event.kind == "policy"]
        assert [event["rule"] for event in events] == ["more"] * len(events)
        assert events[0]["from_warning_bytes"] == 172 * MB
        assert "left or were refused for want of room" in events[0]["reason"]
        assert any("left or were refused for want of room" in line for line in caplog.messages)
        shown = lived.adaptation.as_dict()
        assert shown["changes"] == len(events)
        assert shown["last"]["reason"] == events[-1]["reason"]
        assert json.loads(json.dumps(shown)) == shown


async def test_a_run_that_wants_more_lowers_critical_as_models_leave_and_not_all_of_them(tmp_path: Path) -> None:
    async with host(tmp_path) as served:
        lived = Lived(served)
        lived.live(300)
        machine = served.memory.probe
        assert isinstance(machine, FakeMemory)
        machine.other_bytes = 140 * MB
        served.memory.memory_info()
        lived.adaptation.want(60 * MB)
        assert served.memory.thresholds.warning_bytes == 172 * MB
        assert served.memory.thresholds.critical_bytes == 216 * MB
        assert served.memory.memory_info().level is Level.WARNING, "at critical all that is idle would leave"
        machine.other_bytes = 100 * MB
        served.memory.memory_info()
        served.memory._lower_critical()
        assert served.memory.thresholds.critical_bytes == 192 * MB
        await settled()
        assert served.pool.activations.ceiling_bytes == 64 * MB


async def test_a_limit_that_is_changed_begins_anew(tmp_path: Path) -> None:
    async with host(tmp_path) as served:
        lived = Lived(served)
        lived.live(300)
        served.memory.use_limit(200 * MB)
        lived.now += 1
        lived.adaptation.look()
        await settled()
        assert served.memory.thresholds == served.memory.fixed_thresholds
        assert served.memory.thresholds.limit_bytes == 200 * MB
        assert lived.adaptation.adaptive.thresholds == served.memory.fixed_thresholds


# --- from one start to the next ---------------------------------------------------------------------


async def test_what_is_learnt_survives_a_restart_with_the_same_limit_and_no_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "modelhost")
    async with host(tmp_path) as served:
        lived = Lived(served)
        lived.live(300)
        served._adaptation = lived.adaptation
        learnt = served.memory.thresholds
    async with host(tmp_path) as served:
        assert served.memory.thresholds == learnt
        assert served.policy is not None
        assert served.policy["last"]["rule"] == "restart"
    async with host(tmp_path, limit_mb=512) as served:
        assert served.memory.thresholds == served.memory.fixed_thresholds
    assert "a limit of 268435456 bytes: it begins anew" in caplog.text


async def test_it_can_be_left_out(tmp_path: Path) -> None:
    async with host(tmp_path, keep_learnt=False, keep_statistics=False) as served:
        folder = served.settings.state_directory
    assert not folder.exists()


@pytest.mark.parametrize(
    "row", [b"{}", b"[1]", b'{"version": "x", "limit_bytes": 1}', b'{"learnt": {"runs": -1}}', None]
)
async def test_garbage_is_ignored_with_a_note(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, row: bytes | None
) -> None:
    caplog.set_level(logging.INFO, "modelhost")
    file = policy_file(host(tmp_path).settings.state_directory)
    file.write([b"{}" if row is None else row])
    file.close()
    if row is None:
        (file.folder / "policy").write_bytes(b"\0\1garbage")
    async with host(tmp_path) as served:
        assert served.memory.thresholds == served.memory.fixed_thresholds
    assert "anew" in caplog.text
