"""Models are replaced while clients ask for them, in a real process under a real limit."""

from __future__ import annotations

from pathlib import Path

import pytest
from sizes import FULL

from benchmarks.process import running_host
from benchmarks.swap import Files, swap_under_load
from modelhost.testing import cgroup

SWAPS, CLIENTS = (20, 8) if FULL else (4, 4)

_REASON = cgroup.available()
pytestmark = [
    pytest.mark.cgroup,
    pytest.mark.skipif(_REASON is not None, reason=str(_REASON)),
    *([pytest.mark.full, pytest.mark.timeout(600)] if FULL else []),
]


def test_no_request_fails_and_no_answer_is_of_two_generations_while_files_are_replaced(tmp_path: Path) -> None:
    files = Files(tmp_path)
    with running_host(tmp_path, limit_bytes=256 << 20, settings={"PREPARE_ON_LOAD": "true"}) as host:
        outcome = swap_under_load(host, files, swaps=SWAPS, clients=CLIENTS, said=lambda text: None)
        assert host.is_alive, host.last_words()
        figures = host.group_figures()
        assert figures is not None
        assert figures.oom_kills == 0
    assert outcome.errors == []
    assert len(outcome.swap_s) == SWAPS
    assert outcome.answers > 20 * SWAPS
