"""How many may wait in a queue that all models share: in all, and for one of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from modelhost.errors import Overloaded

#: Without a bound of its own a model may have so many times as many waiting as it leaves room for others: three
#: quarters of the queue where it is the only one, three sevenths each where there are two.
_SHARE: Final = 3


@dataclass(frozen=True, slots=True)
class QueueBound:
    """`waiting` below is how many wait in all, `own_waiting` how many for the model that is asked for."""

    max_waiting: int
    per_model: int | None = None
    """None: a share, see `_SHARE`."""

    def limit(self, waiting: int, own_limit: int | None) -> int:
        """Returns how many may wait for a model now; `own_limit` is what its options say."""
        limit = own_limit or self.per_model
        return _SHARE * (self.max_waiting - waiting) if limit is None else limit

    def is_full(self, waiting: int, own_waiting: int, own_limit: int | None) -> bool:
        """Whether one more is too many."""
        return waiting >= self.max_waiting or own_waiting >= self.limit(waiting, own_limit)

    def refusal(self, queue: str, name: str, waiting: int, own_waiting: int, own_limit: int | None) -> Overloaded:
        """Returns what one more is told: which bound it has met, by how many."""
        if waiting >= self.max_waiting:
            return Overloaded(queue, waiting=waiting, limit=self.max_waiting)
        limit = self.limit(waiting, own_limit)
        text = f"{queue} is full for {name}: {own_waiting} waiting, its limit is {limit} of {self.max_waiting} in all"
        return Overloaded(queue, waiting=own_waiting, limit=limit, text=text, model=name)
