"""Slow senders in short: large bodies byte by byte, accepted and refused, beside somebody who is not slow.

How much slower the others get takes a quiet machine to say: `python -m benchmarks slow-clients`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmarks import workloads
from benchmarks.client import Client
from benchmarks.process import Meter, running_host
from benchmarks.slow_clients import Plan, slow_senders
from benchmarks.tracebacks import first_traceback
from modelhost.testing import cgroup

_REASON = cgroup.available()
pytestmark = [pytest.mark.cgroup, pytest.mark.skipif(_REASON is not None, reason=str(_REASON))]

_SENDERS = 40
_ASKED = 300


def test_beside_slow_senders_no_request_fails_and_memory_stays_below_critical(tmp_path: Path) -> None:
    workload = workloads.make("tiny", cache=tmp_path)
    with (
        running_host(workload.repository, limit_bytes=256 << 20) as host,
        Client(host.url) as client,
        Meter(host) as meter,
    ):
        critical_bytes = client.memory()["critical_bytes"]
        for body_bytes in (10 << 20, 100 << 20):  # one that the host takes, and one that it refuses at the head
            told: Counter[str] = Counter()
            plan = Plan(_SENDERS, body_bytes, 20.0, clients=1, seconds=1, rounds=1, settings={})
            with slow_senders(host.url, workload.name, plan, told):
                for _ in range(_ASKED):
                    assert workload.is_right(client.infer(workload.name, workload.question))
            assert told["requests"] >= _SENDERS
            if body_bytes == 10 << 20:
                assert told["bytes"] >= _SENDERS
                assert set(told) == {"requests", "bytes"}, f"nobody who waits for nobody is refused: {told}"
            else:
                assert told["413"] >= _SENDERS
        assert client.memory()["level"] == "normal"
        assert 0 < meter.peak_bytes < critical_bytes
        figures = host.group_figures()
        assert figures is not None
        assert figures.oom_kills == 0
        assert first_traceback(host.last_words()) is None
