"""Adaptive thresholds: warning and critical follow what is learnt, within guards. Pure: the clock is passed in.

Critical is the limit less the room for runs, and that room is what runs were seen to take, with a margin. Warning,
from where idle models leave, is what is moved: down where the page cache is read again and again, so that models on
the heap leave to it; up where models leave for want of room while it is calm. Nothing is refused for the page cache's
sake: that is why warning pays for it, not critical.

The rules, in the order in which they are tried at each second:

1. `room`: runs take more than is kept free for them, or would reach critical from above the fixed warning. At once, as
   far down as it takes.
2. `undone`: the last move did not pay: what loads and pages read again cost each run did not fall (after a move down),
   or rose (after one up). Back, and not again for a while, twice as long after each further time.
3. `cache`: the page cache has been read again for four seconds, and that costs more than loads do. A step down, each of
   which has to prove itself before the next.
4. `more`: models leave, or are refused, for want of room, and the page cache was calm for half a minute, or
   what is read again is little beside what loads cost. A step up; a larger one on the way back to where fixed
   thresholds are. After a step down that paid it waits for some minutes.

So danger is answered within seconds and room is won back over minutes; a move that is undone is not repeated at the
same pace, which is what keeps it from swinging. A load that costs each run far more than the one for which something
was found not to pay, or to pay, is another load: for that one it is not known, and tried.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Final

from modelhost.memory.adaptive_learnt import Learnt
from modelhost.memory.adaptive_words import Decision, Guards, Reading
from modelhost.memory.thresholds import Thresholds
from modelhost.units import format_bytes, format_span

#: Runs that have to be seen before less room than by default is kept for them.
_LEAST_RUNS: Final = 100
#: Kept for runs, as a multiple of what they were seen to hold together.
_RUNS_MARGIN: Final = 1.25
#: And free beside them, as a share of the limit: what the gate before the arena leaves (`pool.activations`).
_MARGIN_SHARE: Final = 1 / 32
#: Runs are never left with less than this share of the limit.
_LEAST_ROOM_SHARE: Final = 1 / 16

#: A step down, as a share of the limit: 21 MB at 256 MB, so that a model of some size leaves.
_DOWN_SHARE: Final = 1 / 12
#: A step up: 8 MB at 256 MB. As large as one down on the way back to where fixed thresholds are, where models are
#: loaded for so much of the time.
_UP_SHARE: Final = 1 / 32
_LOADING_SHARE: Final = 0.1
#: Less than this share of the limit is no move.
_LEAST_MOVE_SHARE: Final = 1 / 64

#: Between readings that rates are worked out from, and how many are kept.
_TICK_S: Final = 0.9
_TICKS_KEPT: Final = 13
#: Rates are of so many seconds; what a run costs after a move, of so many.
_RATE_S: Final = 4.0
_AFTER_S: Final = 8.0
#: All that is kept.
_LONG_S: Final = 13.0
#: A move is judged after so long: loads that it caused, and pages that are read for the first time, are over by then.
_JUDGED_AFTER_S: Final = 9.0
#: Fewer runs in a rate's time say nothing about what a run costs.
_RUNS_TO_JUDGE: Final = 5
#: What a run may cost after a move, as a share of what it cost before: down, where the page cache is still pressed, and
#: where it is not any more; up.
_PAYS_BELOW: Final = 0.9
_AS_MUCH: Final = 1.0
_COSTS_ABOVE: Final = 1.1

#: Pressed: so much of the page cache would be read again within ten seconds, as in `memory.pressure`; and calm.
_PRESSED_SHARE: Final = 1.0
_CALM_SHARE: Final = 0.1
_SHARES_OF_S: Final = 10.0
#: Or as good as calm: less than pressed, and loads cost so many times as much.
_LOADS_COST: Final = 4.0
#: A page cache of less is read again by any host that has been idle.
_LEAST_CACHE_BYTES: Final = 32 << 20
_PRESSED_PSI: Final = 10.0
#: Pressed for so long before anything is done about it: what a run costs by then is of this load alone.
_PRESSED_S: Final = _RATE_S
#: Calm for so long before more is committed, with so long between two steps …
_CALM_S: Final = 30.0
_UP_EVERY_S: Final = 15.0
#: … and after a step down.
_UP_AFTER_DOWN_S: Final = 120.0
#: A move that was undone is not tried again for so long, twice as long after each further time, at most so long …
_DOWN_AGAIN_S: Final = 60.0
_UP_AGAIN_S: Final = 300.0
_AGAIN_MOST_S: Final = 2400.0
#: … unless a run costs so many times what it cost then: that is another load, of which nothing is known.
_ANOTHER_LOAD: Final = 1.5

#: What reading a file page again costs, as nobody has measured it: a disk of 250 MB/s.
_S_PER_BYTE: Final = 1 / 250e6


@dataclass(frozen=True, slots=True)
class _Tick:
    at_s: float
    runs: int
    load_s: float
    departures: int
    refaulted_bytes: int


@dataclass(frozen=True, slots=True)
class _Move:
    """A step that has yet to prove itself."""

    at_s: float
    from_bytes: int
    is_up: bool
    cost_s: float | None
    """What a run cost before it; None where too few were made."""


@dataclass(slots=True)
class _Patience:
    """When a direction may be tried again."""

    least_s: float
    next_s: float = -math.inf
    wait_s: float = 0.0
    cost_s: float = 0.0
    """The most that a run cost where that was found; 0 where it is not known."""

    def fail(self, at_s: float, *costs_s: float | None) -> None:
        """Waits longer than the last time."""
        self.wait_s = min(_AGAIN_MOST_S, max(self.least_s, self.wait_s * 2))
        self.hold(at_s, self.wait_s, *costs_s)

    def hold(self, at_s: float, wait_s: float, *costs_s: float | None) -> None:
        """Waits for so long."""
        self.next_s = max(self.next_s, at_s + wait_s)
        self.cost_s = max(self.cost_s, *(cost_s or 0.0 for cost_s in costs_s))

    def succeed(self) -> None:
        """Forgets how often it has failed."""
        self.wait_s = self.cost_s = 0.0

    def may_try(self, at_s: float, cost_s: float | None) -> bool:
        """Says whether the wait is over, as it is from when a run costs what it does with another load."""
        if cost_s is not None and 0 < self.cost_s * _ANOTHER_LOAD < cost_s:
            self.next_s = -math.inf
        return at_s >= self.next_s


class Adaptive:
    """Owns what is learnt and which thresholds come of it. One thread, the owner's."""

    def __init__(self, guards: Guards, learnt: Learnt | None = None, *, warning_bytes: int | None = None) -> None:
        self.guards = guards
        self.learnt = learnt or Learnt()
        self._kept_bytes = self._largest_model_bytes = 0
        self._ticks: deque[_Tick] = deque(maxlen=_TICKS_KEPT)
        self._pressed_since = math.inf
        self._calm_since = math.inf
        self._move: _Move | None = None
        self._moved_up_s = self._moved_down_s = -math.inf
        self._up, self._down = _Patience(_UP_AGAIN_S), _Patience(_DOWN_AGAIN_S)
        self.thresholds = guards.fixed
        if warning_bytes is not None:  # of a host before this one
            self.thresholds = self._at(min(max(warning_bytes, self._lowest_bytes), self._highest_bytes))

    def rebase(self, guards: Guards) -> None:
        """Begins anew from other guards, as the limit was changed; what is learnt of runs and loads stays."""
        self.guards, self.thresholds = guards, guards.fixed
        self._move, self._pressed_since, self._calm_since = None, math.inf, math.inf
        self._ticks.clear()

    def bounds(self) -> tuple[Thresholds, Thresholds, int, int]:
        """Returns what is in force, what the settings make, and between what warning may be now."""
        return self.thresholds, self.guards.fixed, self._lowest_bytes, self._highest_bytes

    # --- deciding ------------------------------------------------------------------------------------

    def note(self, reading: Reading) -> Decision | None:
        """Takes a sample; returns a change of the thresholds, which is in force from then on, or None."""
        learnt = self.learnt
        learnt.note(
            reading.at_s,
            claimed_bytes=reading.claimed_bytes,
            run_bytes=reading.run_bytes,
            extra_bytes=reading.extra_bytes,
            over_bytes=reading.over_bytes,
        )
        self._kept_bytes = reading.kept_bytes
        self._largest_model_bytes = max(self._largest_model_bytes, reading.largest_model_bytes)
        if self._ticks and reading.at_s - self._ticks[-1].at_s < _TICK_S:
            return self._make_room(reading.at_s)
        if self._ticks:
            learnt.runs += max(0, reading.runs - self._ticks[-1].runs)
        self._ticks.append(
            _Tick(reading.at_s, reading.runs, reading.load_s, reading.departures, reading.refaulted_bytes or 0)
        )
        self._look_at_cache(reading)
        return (
            self._make_room(reading.at_s)  # 1
            or self._judge(reading.at_s)  # 2
            or self._give_to_cache(reading)  # 3
            or self._take_more(reading)  # 4
        )

    def want(self, run_bytes: int, at_s: float) -> Decision | None:
        """Takes note of a run that wants more than is kept free; returns what changes for it, or None."""
        self.learnt.note(at_s, claimed_bytes=run_bytes, run_bytes=run_bytes, extra_bytes=0, over_bytes=0)
        return self._make_room(at_s)

    def _make_room(self, at_s: float) -> Decision | None:
        now = self.thresholds
        is_kept_full = self._is_kept_full and now.critical_bytes > self.guards.fixed.critical_bytes
        learnt, to_bytes = self.learnt, min(now.warning_bytes, self._highest_bytes)
        is_narrow = now.critical_bytes - now.warning_bytes < learnt.together_bytes
        if now.activation_room_bytes < self._room_bytes(bare=True) or is_kept_full:
            kept = f"{format_bytes(now.activation_room_bytes)} were kept for them and for bodies"
        elif is_narrow and now.warning_bytes - to_bytes >= now.limit_bytes * _LEAST_MOVE_SHARE:
            kept = f"{format_bytes(learnt.together_bytes)} at the most, which would reach critical"
        else:
            return None
        self._move = None
        return self._change(
            at_s,
            to_bytes,
            "room",
            f"runs take up to {format_bytes(learnt.largest_run_bytes)}, and {format_bytes(learnt.claimed_bytes)} "
            f"together; {kept}",
            learnt.as_dict(),
        )

    def _judge(self, at_s: float) -> Decision | None:
        move = self._move
        if move is None or at_s - move.at_s < _JUDGED_AFTER_S:
            return None
        self._move = None
        patience = self._up if move.is_up else self._down
        before_s, after_s = move.cost_s, self._cost_s(_AFTER_S)
        if not self._has_failed(move, after_s):
            if not move.is_up:  # one up has to stand for longer, see `_give_to_cache`
                patience.succeed()
                self._up.hold(at_s, _UP_AGAIN_S, before_s)  # nor is what has just paid taken back for a little
            return None
        patience.fail(at_s, before_s, after_s)
        return self._change(
            at_s,
            min(max(move.from_bytes, self._lowest_bytes), self._highest_bytes),
            "undone",
            f"the last move {'up' if move.is_up else 'down'} did not pay: loads and pages read again cost a run "
            f"{_ms(before_s)} before it and {_ms(after_s)} after it; not again for {format_span(patience.wait_s)}",
            {"before_s": before_s, "after_s": after_s},
        )

    def _has_failed(self, move: _Move, cost_s: float | None) -> bool:
        if move.cost_s is None or cost_s is None:
            return move.is_up and self._is_pressed and not self._loads_cost_more()
        if move.is_up:
            return self._is_pressed and cost_s > move.cost_s * _COSTS_ABOVE
        return cost_s > move.cost_s * (_PAYS_BELOW if self._is_pressed else _AS_MUCH)

    def _give_to_cache(self, reading: Reading) -> Decision | None:
        at_s, now = reading.at_s, self.thresholds
        if self._move is not None or at_s - self._pressed_since < _PRESSED_S:
            return None
        if not self._down.may_try(at_s, self._cost_s(_LONG_S)):
            return None
        if self._loads_cost_more():
            return None  # those that would leave are wanted again
        limit_bytes = now.limit_bytes
        least_bytes = limit_bytes * _LEAST_MOVE_SHARE
        to_bytes = max(
            self._lowest_bytes, min(now.warning_bytes, reading.usage_bytes) - round(limit_bytes * _DOWN_SHARE)
        )
        leaving_bytes = min(reading.usage_bytes - to_bytes, reading.resident_bytes - reading.kept_bytes)
        if leaving_bytes < least_bytes or now.warning_bytes - to_bytes < least_bytes:
            return None  # there is nothing that could leave to it
        if at_s - self._moved_up_s < _UP_AFTER_DOWN_S:  # it came of that, although it was not seen at once
            self._up.fail(at_s, self._cost_s())
        elif self._moved_up_s > self._moved_down_s:
            self._up.succeed()
        self._move = _Move(at_s, now.warning_bytes, is_up=False, cost_s=self._cost_s())
        self._moved_down_s = at_s
        return self._change(
            at_s,
            to_bytes,
            "cache",
            f"{format_bytes(self._refaulted_per_s())} of file pages are read again each second, the page cache holds "
            f"{format_bytes(reading.cache_bytes or 0)}: idle models on the heap leave to it",
            {"refaulted_bytes_per_s": round(self._refaulted_per_s()), "cache_bytes": reading.cache_bytes},
        )

    def _take_more(self, reading: Reading) -> Decision | None:
        at_s, now = reading.at_s, self.thresholds
        if self._move is not None or at_s - self._calm_since < _CALM_S:
            return None
        if at_s - self._moved_up_s < _UP_EVERY_S or at_s - self._moved_down_s < _UP_AFTER_DOWN_S:
            return None
        wanted, limit_bytes = self._departures(), now.limit_bytes
        least_bytes, highest_bytes = limit_bytes * _LEAST_MOVE_SHARE, self._highest_bytes
        if not self._up.may_try(at_s, self._cost_s(_LONG_S)):
            return None
        to_bytes = now.warning_bytes + round(limit_bytes * _UP_SHARE)
        if self._loading_share() >= _LOADING_SHARE:
            fixed_bytes = self.guards.fixed.warning_bytes
            to_bytes = max(to_bytes, min(fixed_bytes, now.warning_bytes + round(limit_bytes * _DOWN_SHARE)))
        if highest_bytes - to_bytes < least_bytes:
            to_bytes = highest_bytes
        if not wanted or to_bytes - now.warning_bytes < least_bytes:
            return None
        self._move = _Move(at_s, now.warning_bytes, is_up=True, cost_s=self._cost_s())
        self._moved_up_s = at_s
        return self._change(
            at_s,
            to_bytes,
            "more",
            f"{wanted} models left or were refused for want of room in {format_span(self._seen_s())}, the page cache "
            f"is calm, and runs take {format_bytes(self.learnt.claimed_bytes)} together",
            {"departures": wanted, **self.learnt.as_dict()},
        )

    def _change(self, at_s: float, warning_bytes: int, rule: str, reason: str, details: dict[str, Any]) -> Decision:
        self.thresholds = found = self._at(warning_bytes)
        return Decision(found, rule, reason, at_s, details)

    # --- bounds ----------------------------------------------------------------------------------------

    def _at(self, warning_bytes: int) -> Thresholds:
        """Returns the thresholds that go with a warning."""
        fixed = self.guards.fixed
        critical = min(self._critical_bytes, max(fixed.critical_bytes, warning_bytes + self._apart_bytes))
        return replace(fixed, warning_bytes=min(warning_bytes, critical - 1), critical_bytes=critical)

    def _room_bytes(self, *, bare: bool = False) -> int:
        """Returns what is to be kept between critical and the limit; `bare`: what it may not fall below."""
        fixed, learnt = self.guards.fixed, self.learnt
        limit_bytes, fixed_room_bytes = fixed.limit_bytes, fixed.activation_room_bytes
        runs_bytes = max(learnt.largest_run_bytes, learnt.claimed_bytes)
        if not bare:
            least_bytes = round(limit_bytes * _LEAST_ROOM_SHARE)
            runs_bytes = max(learnt.largest_run_bytes, round(learnt.claimed_bytes * _RUNS_MARGIN), least_bytes)
            runs_bytes += round(limit_bytes * _MARGIN_SHARE)
            if learnt.runs < _LEAST_RUNS:
                runs_bytes = fixed_room_bytes
        runs_bytes = min(runs_bytes, self.guards.runs_bytes)
        room_bytes = max(fixed.min_free_bytes, self.guards.bodies_bytes + runs_bytes)
        return min(room_bytes, fixed_room_bytes)

    @property
    def _critical_bytes(self) -> int:
        """The highest that critical may be now: never below the fixed one but for what loads overshoot."""
        guards, fixed = self.guards, self.guards.fixed
        least_bytes = fixed.warning_bytes + (fixed.critical_bytes - fixed.warning_bytes) // 2
        found = max(fixed.limit_bytes - self._room_bytes() - self.learnt.overshoot_bytes, least_bytes)
        if self._is_kept_full:
            found = min(found, fixed.critical_bytes)
        return found if guards.highest_critical_bytes is None else min(found, guards.highest_critical_bytes)

    @property
    def _is_kept_full(self) -> bool:
        """Whether pinned models have all that there is by default: they could not leave when runs need the room."""
        fixed = self.guards.fixed
        return fixed.baseline_bytes + self._kept_bytes >= fixed.warning_bytes

    @property
    def _gap_bytes(self) -> int:
        """From warning to critical: what a load takes beyond what it holds, so that one load takes one departure."""
        fixed = self.guards.fixed
        fixed_bytes = fixed.critical_bytes - fixed.warning_bytes
        least_bytes = min(fixed_bytes, round(fixed.limit_bytes * _MARGIN_SHARE))
        extra_bytes = self.learnt.load_extra_bytes
        return fixed_bytes if not extra_bytes else min(fixed_bytes, max(least_bytes, extra_bytes))

    @property
    def _apart_bytes(self) -> int:
        """The same above the fixed warning: runs together do not reach critical, where all that is idle leaves."""
        return max(self._gap_bytes, self.learnt.together_bytes)

    @property
    def _highest_bytes(self) -> int:
        """The highest that warning may be now."""
        critical_bytes, highest_bytes = self._critical_bytes, self.guards.highest_warning_bytes
        fixed_bytes = min(self.guards.fixed.warning_bytes, critical_bytes - self._gap_bytes)
        found = max(fixed_bytes, critical_bytes - self._apart_bytes)
        return found if highest_bytes is None else min(found, highest_bytes)

    @property
    def _lowest_bytes(self) -> int:
        """The lowest: the baseline and the largest model, or a quarter of what there is for models."""
        fixed = self.guards.fixed
        room_bytes = fixed.warning_bytes - fixed.baseline_bytes
        lowest_bytes = fixed.baseline_bytes + max(self._largest_model_bytes, room_bytes // 4)
        return min(fixed.warning_bytes, self._highest_bytes, lowest_bytes)

    # --- rates -----------------------------------------------------------------------------------------

    def _look_at_cache(self, reading: Reading) -> None:
        """Notes since when the page cache is pressed, or calm."""
        rate, cache_bytes = self._refaulted_per_s(), max(reading.cache_bytes or 0, _LEAST_CACHE_BYTES)
        share = rate * _SHARES_OF_S / cache_bytes
        is_stalled = reading.psi_full is not None and reading.psi_full >= _PRESSED_PSI
        if share >= _PRESSED_SHARE or (is_stalled and share > _CALM_SHARE):
            self._pressed_since, self._calm_since = min(self._pressed_since, reading.at_s), math.inf
        else:
            self._pressed_since = math.inf
            # Loads read files that were read before: what they cost goes with them, where there is more room.
            is_calm = share <= _CALM_SHARE or self._loads_cost_more(_LOADS_COST)
            self._calm_since = min(self._calm_since, reading.at_s) if is_calm else math.inf

    @property
    def _is_pressed(self) -> bool:
        return self._pressed_since < math.inf

    def _since(self, seconds: float) -> tuple[_Tick, _Tick]:
        """Returns the last tick, and the one some seconds before it."""
        last = self._ticks[-1]
        first = next(tick for tick in self._ticks if last.at_s - tick.at_s <= seconds)
        return first, last

    def _refaulted_per_s(self) -> float:
        first, last = self._since(_RATE_S)
        span_s = last.at_s - first.at_s
        return max(0, last.refaulted_bytes - first.refaulted_bytes) / span_s if span_s > 0 else 0.0

    def _loads_cost_more(self, times: float = 1.0) -> bool:
        """Whether loads take more than so many times the time of pages that are read again."""
        first, last = self._since(_AFTER_S)
        read_again_s = max(0, last.refaulted_bytes - first.refaulted_bytes) * _S_PER_BYTE
        return last.load_s - first.load_s > read_again_s * times

    def _cost_s(self, seconds: float = _RATE_S) -> float | None:
        """Returns what loads, and pages that are read again, cost each run; None where there were too few."""
        first, last = self._since(seconds)
        runs = last.runs - first.runs
        if runs < _RUNS_TO_JUDGE:
            return None
        read_again_s = max(0, last.refaulted_bytes - first.refaulted_bytes) * _S_PER_BYTE
        return (last.load_s - first.load_s + read_again_s) / runs

    def _loading_share(self) -> float:
        """Returns for how much of the time models were loaded."""
        first, last = self._since(_LONG_S)
        span_s = last.at_s - first.at_s
        return (last.load_s - first.load_s) / span_s if span_s > 0 else 0.0

    def _departures(self) -> int:
        return self._ticks[-1].departures - self._ticks[0].departures

    def _seen_s(self) -> float:
        return self._ticks[-1].at_s - self._ticks[0].at_s


def _ms(seconds: float | None) -> str:
    return "?" if seconds is None else f"{seconds * 1e3:.2g} ms"
