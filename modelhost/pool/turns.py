"""A line in which models take turns, each in its own order."""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Entries by the model that they are for. The head stays the head until it is taken or leaves.

    So whoever comes waits for the head, for one entry of each other model, and for its own model's earlier ones,
    however many others wait.
    """

    __slots__ = ("_count", "_lines")

    def __init__(self) -> None:
        self._lines: dict[Hashable, deque[T]] = {}  # none is empty; the first one's turn it is
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[T]:
        return iter([entry for line in self._lines.values() for entry in line])

    def count(self, model: Hashable) -> int:
        """Returns how many wait for a model."""
        return len(self._lines.get(model, ()))

    @property
    def head(self) -> T:
        """Whose turn it is. Raises StopIteration where nobody waits."""
        return next(iter(self._lines.values()))[0]

    def append(self, model: Hashable, entry: T) -> None:
        """Adds an entry behind those of its model."""
        self._lines.setdefault(model, deque()).append(entry)
        self._count += 1

    def take(self) -> T:
        """Takes the head out; the next turn is another model's. Raises StopIteration where nobody waits."""
        model, line = next(iter(self._lines.items()))
        entry = line.popleft()
        self._count -= 1
        del self._lines[model]
        if line:
            self._lines[model] = line
        return entry

    def remove(self, model: Hashable, entry: T) -> bool:
        """Takes an entry out that leaves; returns False where it is not there. No turn is lost by it."""
        line = self._lines.get(model)
        if line is None or entry not in line:
            return False
        line.remove(entry)
        self._count -= 1
        if not line:
            del self._lines[model]
        return True
