"""What adaptive thresholds have learnt of the load: peaks of runs and loads. Pure: no clock, no I/O."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any, Final

#: Peaks are kept of windows of so long …
_WINDOW_S: Final = 10.0
#: … and of so many of them in which there was anything: ten minutes of work.
_WINDOWS: Final = 60
#: The largest run is remembered for so many hours of the host's time, so that what comes once a day is expected.
_HOURS: Final = 24
_HOUR_S: Final = 3600.0
#: What stays is the least of so long, and of so long before.
_FLOOR_S: Final = 30.0
#: All runs together wait for each other where they want more; what a window in twenty wants is not kept free.
_QUANTILE: Final = 0.95


class Learnt:
    """Peaks, as they are noted at each sample. One thread, the owner's; a few KB, whatever the load."""

    def __init__(self) -> None:
        self.runs = 0
        """Runs that were seen, those of hosts before this one included."""
        self._claimed = Peaks()
        self._extra = Peaks()
        self._over = Peaks()
        self._hours: deque[int] = deque([0], maxlen=_HOURS)
        self._hour: int | None = None

    def note(self, at_s: float, *, claimed_bytes: int, run_bytes: int, extra_bytes: int, over_bytes: int) -> None:
        """Takes the largest figures since the last call; moments only ever rise."""
        self._claimed.note(at_s, claimed_bytes)
        self._extra.note(at_s, extra_bytes)
        self._over.note(at_s, over_bytes)
        hour = int(at_s // _HOUR_S)
        if self._hour is not None and hour != self._hour:
            self._hours.extend([0] * min(_HOURS, hour - self._hour))
        self._hour = hour
        self._hours[-1] = max(self._hours[-1], run_bytes)

    @property
    def largest_run_bytes(self) -> int:
        """The largest single run of the last day."""
        return max(self._hours)

    @property
    def claimed_bytes(self) -> int:
        """What runs hold together at their peaks, but for one window in twenty."""
        return self._claimed.quantile(_QUANTILE)

    @property
    def together_bytes(self) -> int:
        """The most that runs held together in those windows."""
        return self._claimed.quantile(1.0)

    @property
    def load_extra_bytes(self) -> int:
        """What a load takes at its highest beyond what the model holds afterwards."""
        return self._extra.quantile(_QUANTILE)

    @property
    def overshoot_bytes(self) -> int:
        """What loads held beyond what was predicted of them."""
        return self._over.quantile(_QUANTILE)

    def as_dict(self) -> dict[str, int]:
        """Returns the figures for JSON."""
        return {
            "runs": self.runs,
            "largest_run_bytes": self.largest_run_bytes,
            "claimed_bytes": self.claimed_bytes,
            "load_extra_bytes": self.load_extra_bytes,
            "overshoot_bytes": self.overshoot_bytes,
        }

    # --- from one start to the next ------------------------------------------------------------------

    def to_table(self) -> dict[str, Any]:
        """Returns all of it for JSON; `from_table` reads it."""
        return {
            "runs": self.runs,
            "hours": list(self._hours),
            "claimed": self._claimed.to_list(),
            "extra": self._extra.to_list(),
            "over": self._over.to_list(),
        }

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Learnt:
        """Reads what `to_table` has written. Raises KeyError, TypeError or ValueError where it is something else."""
        found = cls()
        found.runs = count_of(table["runs"])
        found._hours.extend(map(count_of, table["hours"]))
        found._claimed, found._extra, found._over = (
            Peaks.from_list(table[name]) for name in ("claimed", "extra", "over")
        )
        return found


class Peaks:
    """The highest of each window in which there was anything; the one in progress counts."""

    def __init__(self) -> None:
        self._peaks: deque[int] = deque(maxlen=_WINDOWS)
        self._window = -1

    def note(self, at_s: float, size_bytes: int) -> None:
        """Takes a figure; 0 is none."""
        if size_bytes <= 0:
            return
        window = int(at_s // _WINDOW_S)
        if window == self._window and self._peaks:
            self._peaks[-1] = max(self._peaks[-1], size_bytes)
        else:
            self._window = window
            self._peaks.append(size_bytes)

    def quantile(self, share: float) -> int:
        """Returns what `share` of the windows stay at or below; 0 where there are none."""
        if not self._peaks:
            return 0
        return sorted(self._peaks)[math.ceil(share * len(self._peaks)) - 1]

    def to_list(self) -> list[int]:
        """Returns the peaks, oldest first."""
        return list(self._peaks)

    @classmethod
    def from_list(cls, values: list[Any]) -> Peaks:
        """Reads what `to_list` gave. Raises TypeError or ValueError where it is something else."""
        found = cls()
        found._peaks.extend(map(count_of, values))
        return found


class Floor:
    """What a figure stays above: its least of the last minute, or half of it."""

    def __init__(self) -> None:
        self._window = -1
        self._now_bytes = math.inf
        self._before_bytes = math.inf

    def above(self, at_s: float, size_bytes: int) -> int:
        """Takes a figure; returns how far it is above."""
        window = int(at_s // _FLOOR_S)
        if window != self._window:
            self._before_bytes = self._now_bytes if window == self._window + 1 else math.inf
            self._window, self._now_bytes = window, math.inf
        self._now_bytes = min(self._now_bytes, size_bytes)
        return int(size_bytes - min(self._now_bytes, self._before_bytes))


def count_of(value: Any) -> int:
    """Returns a figure that was read from a file. Raises ValueError where it is none."""
    if type(value) is not int or not 0 <= value < 1 << 60:
        raise ValueError(f"expected a count, got {value!r}")
    return value
