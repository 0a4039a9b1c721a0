"""Who goes first where threads are more than cores: as the kernel has taken it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelhost.precedence import go_as_usual, go_behind, go_first, go_last


def wanted_ns(step: Callable[[], object] = lambda: None) -> int:
    """What the thread wants of a core at a time after `step`. Skips where the kernel does not say, or take it."""
    step()
    try:
        figures = dict(
            line.split(":", 1) for line in Path("/proc/thread-self/sched").read_text().splitlines() if ":" in line
        )
        return int({key.strip(): value for key, value in figures.items()}["se.slice"])
    except (OSError, KeyError):
        pytest.skip("this kernel does not tell of slices")


def on_thread(step: Callable[[], object]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(wanted_ns(step)))
    thread.start()
    thread.join()
    if not found:
        pytest.skip("this kernel does not tell of slices")
    return found[0]


def test_threads_want_little_much_or_what_is_usual_at_a_time() -> None:
    usual_ns = wanted_ns()
    first_ns, last_ns = on_thread(go_first), on_thread(go_last)
    if first_ns == last_ns:
        pytest.skip("this kernel has one slice for all")
    assert first_ns < usual_ns < last_ns
    for step in (go_as_usual, go_behind):
        assert on_thread(lambda step=step: (go_first(), step())) == usual_ns
    assert wanted_ns() == usual_ns


def test_a_priority_stays_as_it_was_given_but_for_who_lets_others_go_first() -> None:

    def nice_after(step: Callable[[], object], before: int = 3) -> int:
        found: list[int] = []

        def work() -> None:
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, before)
            step()
            found.append(os.getpriority(os.PRIO_PROCESS, own))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return found[0]

    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert [nice_after(step) for step in (go_first, go_as_usual, go_behind, go_last)] == [3, 3, 6, 8]
    assert nice_after(go_last, before=18) == 19
    assert os.getpriority(os.PRIO_PROCESS, 0) == own, "the thread's own, not the process's"
