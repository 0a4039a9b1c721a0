"""Failed loads, remembered for a short, growing time, so that a broken model cannot keep the host busy."""

from __future__ import annotations

from dataclasses import dataclass

from modelhost.errors import ModelHostError
from modelhost.pool.key import ModelKey


@dataclass(frozen=True, slots=True)
class _Failure:
    error: ModelHostError
    stamp: tuple[int, ...]
    count: int
    until: float


def backoff_s(count: int, *, first_s: float, longest_s: float) -> float:
    """Returns how long to wait after so many failures in a row: `first_s`, and twice as long after each further one."""
    return min(longest_s, first_s * 2.0 ** min(count - 1, 60))  # the exponent is bounded so that the float is


class Failures:
    """One entry for each version that failed at its last load. Times are the caller's, in seconds."""

    def __init__(self, *, backoff_s: float, backoff_max_s: float) -> None:
        self._backoff_s, self._backoff_max_s = backoff_s, backoff_max_s
        self._failures: dict[ModelKey, _Failure] = {}

    def __len__(self) -> int:
        return len(self._failures)

    def note(self, key: ModelKey, error: ModelHostError, now: float, stamp: tuple[int, ...] = ()) -> None:
        """Remembers a failure: `backoff_s` the first time, twice as long after each further one.

        `stamp` says what the files were.
        """
        count = self._failures[key].count + 1 if key in self._failures else 1
        wait_s = backoff_s(count, first_s=self._backoff_s, longest_s=self._backoff_max_s)
        self._failures[key] = _Failure(error, stamp, count, now + wait_s)

    def recent(self, key: ModelKey, now: float) -> ModelHostError | None:
        """Returns the error of a failure that is too fresh to try again."""
        failure = self._failures.get(key)
        return failure.error if failure is not None and now < failure.until else None

    def last(self, key: ModelKey) -> ModelHostError | None:
        """Returns the error of the last load where it failed, however long ago."""
        failure = self._failures.get(key)
        return failure.error if failure is not None else None

    def stamps(self) -> dict[ModelKey, tuple[int, ...]]:
        """Returns what failed, and what its files were then."""
        return {key: failure.stamp for key, failure in self._failures.items()}

    def forget(self, key: ModelKey) -> None:
        """Forgets what is remembered of `key`: it loaded, or somebody asks for another try."""
        self._failures.pop(key, None)
