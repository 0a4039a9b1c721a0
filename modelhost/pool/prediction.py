"""Which model will be wanted next, from when each was used. Pure: moments are passed in, on any clock that only rises.

Two patterns are known: uses that come at even distances, and models that are used often. What has neither is not
predicted. Whoever predicts wrongly is asked less often: see `Trust`.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Final

from modelhost.pool.key import ModelKey

#: Models whose uses are remembered, those used last: some 400 bytes each.
_MODELS: Final = 512
#: Uses that are nearer to each other are one.
_ONE_USE_S: Final = 2.0
#: Beginnings of uses that are remembered of each model …
_KEPT: Final = 8
#: … and distances that have to be even before they count as a period.
_LEAST_INTERVALS: Final = 3
#: Even: within this share of their median, or this much.
_EVEN_SHARE: Final = 0.15
_EVEN_S: Final = 2.0
#: How long before it is due a model is expected: this share of the period, within these bounds.
_AHEAD_SHARE: Final = 0.1
_AHEAD_S: Final = (3.0, 30.0)
#: How sure an even period is; a model of which it was missed once is not expected by it again until it is used.
_SURE: Final = 0.9

#: Uses are forgotten with this time constant.
_FORGET_S: Final = 600.0
#: A model counts as wanted where it is used again within this, as likely as that at least.
HORIZON_S: Final = 30.0
_LEAST_LIKELY: Final = 0.25


@dataclass(frozen=True, slots=True)
class Prediction:
    """A model that is likely to be wanted soon."""

    key: ModelKey
    likely: float
    """From 0 to 1."""
    reason: str


class _Uses:
    __slots__ = ("begun", "count", "last_s")

    def __init__(self) -> None:
        self.begun: deque[float] = deque(maxlen=_KEPT)
        self.last_s = -math.inf
        self.count = 0.0  # decayed, as of `last_s`

    def note(self, at_s: float) -> None:
        if at_s - self.last_s > _ONE_USE_S:
            self.count = self.count * math.exp((self.last_s - at_s) / _FORGET_S) + 1
            self.begun.append(at_s)
        self.last_s = at_s

    def period_s(self) -> float | None:
        """Returns the even distance of the last uses; None where they have none."""
        intervals = [after - before for before, after in pairwise(self.begun)]
        if len(intervals) < _LEAST_INTERVALS:
            return None
        middle = median(intervals)
        off_s = max(_EVEN_S, middle * _EVEN_SHARE)
        return middle if all(abs(interval - middle) <= off_s for interval in intervals[-_LEAST_INTERVALS:]) else None

    def likely(self, at_s: float) -> tuple[float, str]:
        """Returns how likely a use is within the horizon, and why."""
        period_s = self.period_s()
        if period_s is not None and period_s > HORIZON_S:
            left_s = self.begun[-1] + period_s - at_s
            ahead_s = min(max(period_s * _AHEAD_SHARE, _AHEAD_S[0]), _AHEAD_S[1])
            if -ahead_s <= left_s <= ahead_s:
                return _SURE, f"it is used every {period_s:.0f} s"
            return 0.0, ""  # it comes when it comes
        rate = self.count * math.exp((self.last_s - at_s) / _FORGET_S) / _FORGET_S
        return 1 - math.exp(-rate * HORIZON_S), f"it was used {self.count:.0f} times lately"


class Predictor:
    """Remembers when models were used. One thread, the owner's; a look takes some 0.5 ms for all that it knows."""

    def __init__(self) -> None:
        self._uses: OrderedDict[ModelKey, _Uses] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uses)

    def note(self, key: ModelKey, at_s: float) -> None:
        """Takes note of a use."""
        uses = self._uses.get(key)
        if uses is None:
            uses = self._uses[key] = _Uses()
            if len(self._uses) > _MODELS:
                self._uses.popitem(last=False)
        self._uses.move_to_end(key)
        uses.note(at_s)

    def next(self, at_s: float, may_come: Callable[[ModelKey], bool]) -> Prediction | None:
        """Returns who is likeliest to be wanted soon, of those that may come; None where nobody is likely enough."""
        best = Prediction(ModelKey("", ""), _LEAST_LIKELY, "")
        for key, uses in self._uses.items():
            likely, reason = uses.likely(at_s)
            if likely > best.likely and may_come(key):
                best = Prediction(key, likely, reason)
        return best if best.reason else None


#: After a prediction that nobody used none is made for so long, twice as long after each further one, at most …
_WAIT_S: Final = 30.0
_WAIT_MOST_S: Final = 3600.0
#: After one that gave way to a request, or for which there was no room, so long.
_PAUSE_S: Final = 10.0


class Trust:
    """When the next prediction may be made, by what became of the last ones."""

    def __init__(self) -> None:
        self._next_s = -math.inf
        self._wait_s = 0.0

    def is_given(self, at_s: float) -> bool:
        """Whether a prediction may be made now."""
        return at_s >= self._next_s

    def pause(self, at_s: float) -> None:
        """Says that one gave way: not again at once."""
        self._next_s = max(self._next_s, at_s + _PAUSE_S)

    def hit(self) -> None:
        """Says that one was used."""
        self._wait_s, self._next_s = 0.0, -math.inf

    def wasted(self, at_s: float) -> None:
        """Says that one was not."""
        self._wait_s = min(_WAIT_MOST_S, max(_WAIT_S, self._wait_s * 2))
        self._next_s = at_s + self._wait_s
