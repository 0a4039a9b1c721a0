"""Whether a model may load: each numbered case of the decision, and what holds in all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.pool.admission import Decision, Evict, Figures, Load, Refuse, Trim, Wait, decide
from modelhost.pool.eviction import Candidate, choose_victims
from modelhost.pool.key import ModelKey


def candidate(name: str, size: int, *, pinned: bool = False) -> Candidate:
    return Candidate(ModelKey(name, "1"), size, pinned)


A, B, C = candidate("a", 20), candidate("b", 20), candidate("c", 20)
PINNED = candidate("p", 20, pinned=True)
SLIGHT, SLIGHT_TOO = candidate("s", 1), candidate("t", 1)

#: In megabytes: the machine of 256, with nothing loaded.
EMPTY = Figures(
    usage_bytes=60,
    reserved_bytes=0,
    baseline_bytes=60,
    warning_bytes=172,
    critical_bytes=192,
    idle=(),
    in_use_bytes=0,
    can_trim=False,
)


@pytest.mark.parametrize(
    ("figures", "resident", "peak", "decision"),
    [
        # 1: never
        ({}, 132, 132, Refuse(132, never=True)),
        ({}, 20, 132, Refuse(132, never=True)),
        ({"idle": (A, B)}, 500, 500, Refuse(132, never=True)),
        ({"can_trim": True, "in_use_bytes": 500}, 500, 500, Refuse(132, never=True)),
        # 2: fits below warning
        ({}, 20, 20, Load()),
        ({}, 111, 111, Load()),
        ({}, 111, 131, Load()),
        ({"usage_bytes": 151}, 20, 20, Load()),
        ({"usage_bytes": 100, "reserved_bytes": 51}, 20, 20, Load()),
        ({"can_trim": True, "idle": (A,)}, 20, 20, Load()),
        # 3: runs may have left something
        ({"usage_bytes": 160, "can_trim": True}, 20, 20, Trim()),
        ({"usage_bytes": 160, "can_trim": True, "idle": (A,)}, 20, 20, Trim()),
        ({"usage_bytes": 100, "can_trim": True}, 20, 120, Trim()),
        # 4: victims bring it below warning …
        ({"usage_bytes": 160, "idle": (A, B)}, 20, 20, Evict((A,))),
        ({"usage_bytes": 171, "idle": (A, B)}, 20, 20, Evict((A,))),
        ({"usage_bytes": 172, "idle": (A, B)}, 20, 20, Evict((A, B))),
        ({"usage_bytes": 140, "reserved_bytes": 20, "idle": (A, B)}, 20, 20, Evict((A,))),
        ({"usage_bytes": 160, "idle": (PINNED, A, B)}, 20, 20, Evict((A,))),
        ({"usage_bytes": 120, "idle": (A, B)}, 10, 100, Evict((A, B))),  # the peak alone needs both
        # … or all of them at least below critical
        ({"usage_bytes": 185, "idle": (A,)}, 20, 20, Evict((A,))),
        ({"usage_bytes": 191, "idle": (A,)}, 20, 20, Evict((A,))),
        # … or none has to leave for critical: it loads above warning
        ({"usage_bytes": 160}, 20, 20, Load()),
        ({"usage_bytes": 171}, 20, 20, Load()),
        ({"usage_bytes": 160, "idle": (PINNED,)}, 20, 20, Load()),
        # … nor is it worth it: what they hold would not show
        ({"usage_bytes": 140, "reserved_bytes": 40, "idle": (SLIGHT, SLIGHT_TOO)}, 2, 2, Load()),
        ({"usage_bytes": 140, "reserved_bytes": 35, "idle": (SLIGHT, A, SLIGHT_TOO)}, 20, 20, Evict((A,))),
        ({"usage_bytes": 140, "reserved_bytes": 50, "idle": (SLIGHT, SLIGHT_TOO)}, 3, 3, Evict((SLIGHT, SLIGHT_TOO))),
        # 5: in use
        ({"usage_bytes": 172, "in_use_bytes": 20}, 20, 20, Wait(20)),
        ({"usage_bytes": 191, "in_use_bytes": 20}, 20, 20, Wait(1)),
        ({"usage_bytes": 250, "in_use_bytes": 500}, 20, 20, Wait(0)),
        ({"usage_bytes": 192, "in_use_bytes": 1, "idle": (A,)}, 20, 20, Wait(20)),
        # 6: nothing that could leave would help
        ({"usage_bytes": 172}, 20, 20, Refuse(20, never=False)),
        ({"usage_bytes": 192, "idle": (PINNED,)}, 20, 20, Refuse(0, never=False)),
        ({"usage_bytes": 193, "in_use_bytes": 20}, 20, 20, Refuse(0, never=False)),
        ({"usage_bytes": 193, "idle": (A,)}, 20, 20, Refuse(19, never=False)),
    ],
)
def test_each_case_of_the_decision(figures: dict[str, Any], resident: int, peak: int, decision: Decision) -> None:
    assert decide(replace(EMPTY, **figures), resident_bytes=resident, peak_bytes=peak) == decision


@pytest.mark.parametrize(
    ("figures", "resident", "peak", "decision"),
    [
        # above warning, and all of that is free inside: nobody leaves
        ({"usage_bytes": 185, "reusable_bytes": 20, "idle": (A, B)}, 5, 5, Load()),
        ({"usage_bytes": 190, "reusable_bytes": 30, "idle": (A, B)}, 5, 25, Load()),
        ({"usage_bytes": 191, "reusable_bytes": 25, "idle": (A, B)}, 5, 5, Load()),
        # trimming returns none of it
        ({"usage_bytes": 185, "reusable_bytes": 20, "can_trim": True}, 5, 5, Load()),
        # some of it is in use
        ({"usage_bytes": 185, "reusable_bytes": 18, "idle": (A, B)}, 5, 5, Evict((A,))),
        ({"usage_bytes": 191, "reusable_bytes": 1, "idle": (A, B)}, 5, 5, Evict((A, B))),
        # a peak that does not fit into it
        ({"usage_bytes": 185, "reusable_bytes": 20, "idle": (A, B)}, 5, 27, Evict((A,))),
        ({"usage_bytes": 185, "reusable_bytes": 20}, 5, 26, Load()),
        ({"usage_bytes": 185, "reusable_bytes": 20}, 5, 27, Refuse(7, never=False)),
        # critical is critical
        ({"usage_bytes": 192, "reusable_bytes": 100}, 5, 5, Refuse(0, never=False)),
        ({"usage_bytes": 192, "reusable_bytes": 100, "in_use_bytes": 20}, 5, 5, Wait(0)),
        ({"usage_bytes": 192, "reusable_bytes": 100, "idle": (A, B)}, 5, 5, Evict((A,))),
        ({"usage_bytes": 185, "reserved_bytes": 7, "reusable_bytes": 100, "idle": (A, B)}, 5, 5, Evict((A,))),
        # what could never fit does not fit into holes
        ({"usage_bytes": 100, "reusable_bytes": 132}, 132, 132, Refuse(132, never=True)),
    ],
)
def test_a_load_of_small_blocks_counts_on_what_is_free_in_the_heap(
    figures: dict[str, Any], resident: int, peak: int, decision: Decision
) -> None:
    found = replace(EMPTY, **figures)
    assert decide(found, resident_bytes=resident, peak_bytes=peak, in_small_blocks=True) == decision


@pytest.mark.parametrize(
    ("figures", "resident", "peak", "decision"),
    [
        # nobody leaves for holes …
        ({"usage_bytes": 172, "reusable_bytes": 6, "idle": (A, B)}, 5, 5, Load()),
        ({"usage_bytes": 172, "reusable_bytes": 5, "idle": (A, B)}, 5, 5, Evict((A,))),
        # … half of the way to critical
        ({"usage_bytes": 176, "reusable_bytes": 50, "idle": (A, B)}, 5, 5, Load()),
        ({"usage_bytes": 177, "reusable_bytes": 50, "idle": (A, B)}, 5, 5, Evict((A,))),
        # they are no room for tensors
        ({"usage_bytes": 185, "reusable_bytes": 30}, 7, 7, Refuse(7, never=False)),
        ({"usage_bytes": 191, "reusable_bytes": 30, "in_use_bytes": 5}, 5, 5, Wait(1)),
    ],
)
def test_a_load_of_tensors_finds_no_room_in_the_heap(
    figures: dict[str, Any], resident: int, peak: int, decision: Decision
) -> None:
    assert decide(replace(EMPTY, **figures), resident_bytes=resident, peak_bytes=peak) == decision


def test_a_round_that_frees_nothing_but_holes_is_the_last_one() -> None:
    figures = replace(EMPTY, usage_bytes=171, idle=(A, B, C))
    victims = decide(figures, resident_bytes=20, peak_bytes=20, in_small_blocks=True)
    assert victims == Evict((A,))
    figures = replace(figures, reusable_bytes=20, idle=(B, C))  # and usage is what it was
    assert decide(figures, resident_bytes=20, peak_bytes=20, in_small_blocks=True) == Load()
    assert decide(figures, resident_bytes=20, peak_bytes=20) == Evict((B,))  # tensors do not fit into holes


@st.composite
def situations(draw: st.DrawFn) -> tuple[Figures, int, int]:
    baseline = draw(st.integers(0, 100))
    warning = baseline + draw(st.integers(1, 100))
    critical = warning + draw(st.integers(1, 50))
    sizes = st.tuples(st.integers(0, 60), st.booleans())
    idle = tuple(
        candidate(str(number), size, pinned=pinned)
        for number, (size, pinned) in enumerate(draw(st.lists(sizes, max_size=6)))
    )
    figures = Figures(
        usage_bytes=draw(st.integers(0, 300)),
        reserved_bytes=draw(st.integers(0, 100)),
        baseline_bytes=baseline,
        warning_bytes=warning,
        critical_bytes=critical,
        idle=idle,
        in_use_bytes=draw(st.integers(0, 200)),
        can_trim=draw(st.booleans()),
    )
    resident = draw(st.integers(0, 200))
    return figures, resident, resident + draw(st.integers(0, 50))


def is_slight(needed: float) -> Callable[[Candidate], bool]:
    return lambda idle: idle.committed_bytes < needed / 8


@given(situations())
def test_whatever_the_figures_the_decision_keeps_its_promises(situation: tuple[Figures, int, int]) -> None:
    figures, resident, peak = situation
    decision = decide(figures, resident_bytes=resident, peak_bytes=peak)
    base = figures.usage_bytes + figures.reserved_bytes
    unpinned = [victim for victim in figures.idle if not victim.pinned]
    never = figures.baseline_bytes + peak >= figures.critical_bytes

    # It is pure: asked again, the answer is the same.
    assert decide(figures, resident_bytes=resident, peak_bytes=peak) == decision
    # Never is said where it is so, and only there.
    assert never == (isinstance(decision, Refuse) and decision.never)
    match decision:
        case Load():
            assert base + peak < figures.critical_bytes
            over_warning = base + resident - figures.warning_bytes + 1
            held = sum(victim.committed_bytes for victim in unpinned)
            assert over_warning <= 0 or (held < over_warning and all(map(is_slight(over_warning), unpinned)))
        case Evict(victims):
            assert victims
            needed = max(base + resident - figures.warning_bytes, base + peak - figures.critical_bytes) + 1
            before_last = unpinned[: unpinned.index(victims[-1])]
            stay = [idle for idle in before_last if idle not in victims]  # never pinned, the oldest first,
            assert [idle for idle in unpinned if idle in victims] == list(victims)
            assert all(map(is_slight(needed), stay))  # but for those that hold next to nothing
            freed = sum(victim.committed_bytes for victim in victims)
            assert base - freed + peak < figures.critical_bytes
            # One less would not have done, or there are no more.
            last = [*stay, *victims][-1].committed_bytes
            held = sum(victim.committed_bytes for victim in unpinned)
            assert freed - last < needed or held < needed
            assert freed >= needed or held < needed
        case Trim():
            assert figures.can_trim
        case Wait(available):
            assert 0 <= available <= peak
            assert figures.in_use_bytes > 0
        case Refuse(available, never=False):
            freed = sum(victim.committed_bytes for victim in unpinned)
            assert base - freed - figures.in_use_bytes + peak >= figures.critical_bytes
            assert 0 <= available <= peak


@given(situations(), st.integers(0, 100), st.booleans())
def test_what_is_free_in_the_heap_lets_nothing_load_at_critical_and_evicts_nobody_more(
    situation: tuple[Figures, int, int], reusable: int, in_small_blocks: bool
) -> None:
    figures, resident, peak = situation
    without = decide(figures, resident_bytes=resident, peak_bytes=peak)
    decision = decide(
        replace(figures, reusable_bytes=reusable),
        resident_bytes=resident,
        peak_bytes=peak,
        in_small_blocks=in_small_blocks,
    )
    base = figures.usage_bytes + figures.reserved_bytes
    match decision:
        case Load():
            assert base + max(0, peak - reusable * in_small_blocks) < figures.critical_bytes
            assert figures.baseline_bytes + peak < figures.critical_bytes
        case Evict(victims) if isinstance(without, Evict):
            needed = max(base + resident - figures.warning_bytes, base + peak - figures.critical_bytes) + 1
            assert {idle for idle in victims if not is_slight(needed)(idle)} <= set(without.victims)
        case Evict():
            assert not isinstance(without, Load)
        case Wait(available) | Refuse(available, never=False):
            assert 0 <= available <= peak
    if isinstance(without, Load):
        assert decision == without


@given(situations())
def test_deciding_again_after_acting_comes_to_an_end(situation: tuple[Figures, int, int]) -> None:
    figures, resident, peak = situation
    for _ in range(2 + len(figures.idle)):
        decision = decide(figures, resident_bytes=resident, peak_bytes=peak)
        match decision:
            case Trim():
                figures = replace(figures, can_trim=False)
            case Evict(victims):
                freed = sum(victim.committed_bytes for victim in victims)
                left = tuple(idle for idle in figures.idle if idle not in victims)
                figures = replace(figures, usage_bytes=figures.usage_bytes - freed, idle=left)
            case _:
                return
    pytest.fail(f"still deciding: {decision}")


# --- victims ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("idle", "needed", "victims"),
    [
        ((), 10, ()),
        ((A, B, C), 0, ()),
        ((A, B, C), -5, ()),
        ((A, B, C), 1, (A,)),
        ((A, B, C), 20, (A,)),
        ((A, B, C), 21, (A, B)),
        ((A, B, C), float("inf"), (A, B, C)),
        ((A, B, C), 1000, (A, B, C)),
        ((PINNED, B), 1, (B,)),
        ((PINNED,), 1, ()),
        ((C, A), 1, (C,)),
        ((SLIGHT, A), 20, (A,)),
        ((SLIGHT, A, SLIGHT_TOO, B), 30, (A, B)),
        ((SLIGHT, A, SLIGHT_TOO, B), 41, (SLIGHT, A, B)),  # the last ones are spared first
        ((SLIGHT, A), 21, (SLIGHT, A)),
        ((SLIGHT, SLIGHT_TOO), 7, (SLIGHT, SLIGHT_TOO)),
        ((SLIGHT, SLIGHT_TOO), 1, (SLIGHT,)),
        ((SLIGHT, SLIGHT_TOO), float("inf"), (SLIGHT, SLIGHT_TOO)),
    ],
)
def test_victims_are_the_oldest_that_hold_enough(
    idle: tuple[Candidate, ...], needed: float, victims: tuple[Candidate, ...]
) -> None:
    assert choose_victims(idle, needed) == victims
    assert choose_victims(list(idle), needed) == victims


MB = 1 << 20
LITTLE, LITTLE_TOO, MUCH = candidate("s", MB), candidate("t", MB), candidate("a", 20 * MB)
#: In bytes, 8 MB below critical: nothing of a load of more fits there.
NEARLY_FULL = Figures(
    usage_bytes=184 * MB,
    reserved_bytes=0,
    baseline_bytes=60 * MB,
    warning_bytes=191 * MB,
    critical_bytes=192 * MB,
    idle=(),
    in_use_bytes=0,
    can_trim=False,
)


@pytest.mark.parametrize(
    ("idle", "passing", "peak", "decision"),
    [
        # what holds next to nothing leaves for a load where nothing else helps …
        ((LITTLE, LITTLE_TOO), 0, 10, Evict((LITTLE, LITTLE_TOO))),
        # … and stays where a child will give back more
        ((LITTLE, LITTLE_TOO), 50, 10, Wait(8 * MB)),
        ((LITTLE, LITTLE_TOO), 50, 9, Wait(8 * MB)),
        ((LITTLE, MUCH), 50, 10, Evict((LITTLE, MUCH))),
        # … but where that would not do either
        ((LITTLE, LITTLE_TOO), 1, 10, Evict((LITTLE, LITTLE_TOO))),
        ((LITTLE, LITTLE_TOO), 50, 7, Load()),
    ],
)
def test_what_holds_next_to_nothing_waits_for_a_child_to_end(
    idle: tuple[Candidate, ...], passing: int, peak: int, decision: Decision
) -> None:
    figures = replace(NEARLY_FULL, idle=idle, passing_bytes=passing * MB)
    assert decide(figures, resident_bytes=MB, peak_bytes=peak * MB - 1) == decision
