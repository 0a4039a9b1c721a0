"""Which Python objects live, and how much memory they are."""

from __future__ import annotations

import gc
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

#: Longer than it takes to go through the list of all objects; who gets the interpreter before has it so long at most.
_UNDISTURBED_S: Final = 0.2

#: What the system may take to wake threads that wait for the interpreter; on a busy machine a few milliseconds.
_GIVE_WAY_S: Final = 0.02


@dataclass(frozen=True, slots=True)
class Census:
    """The live objects that the garbage collector knows, and the plain values that they refer to."""

    size_bytes: int
    counts: Mapping[str, int]
    """Type name to how many of it live."""
    sizes: Mapping[str, int]
    """Type name to the bytes of all of them."""
    foreign_arrays: int
    """Live numpy arrays over memory that belongs to something else: they keep that alive."""

    def grown(self, before: Census, limit: int = 5) -> tuple[tuple[str, int, int], ...]:
        """Returns the types that grew most in bytes since `before`: name, objects more, bytes more."""
        more = (
            (name, count - before.counts.get(name, 0), self.sizes[name] - before.sizes.get(name, 0))
            for name, count in self.counts.items()
        )
        return tuple(sorted((entry for entry in more if entry[2] > 0), key=lambda entry: -entry[2])[:limit])


def take_census() -> Census:
    """Counts the live objects; some 0.1 s a million, during which other Python threads wait. Any thread.

    An object that only a running function's variable holds is missed unless it is a container, and no tuple.
    """
    counts, sizes, foreign = _count()
    names = {kind: f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.") for kind in counts}
    by_name, bytes_by_name = Counter[str](), Counter[str]()
    for kind, name in names.items():
        by_name[name] += counts[kind]
        bytes_by_name[name] += sizes[kind]
    return Census(sum(sizes.values()), dict(by_name), dict(bytes_by_name), foreign)


def _tracked() -> list[Any]:
    """Returns the objects that the collector knows, but for tuples.

    Some tuples are still being filled by other threads, and CPython refuses to resize a tuple that somebody else
    refers to: `tuple(…)` of a generator would raise SystemError in a thread that has done nothing wrong. So others do
    not run while tuples are referred to here, some 20 ms for a million objects. Finished ones are found through what
    holds them.
    """
    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(_UNDISTURBED_S)
    try:
        # Who is waiting already asks for its turn after the interval of before, whenever the system lets it: it is
        # given way first, and waits with the longer interval from then on.
        if len(sys._current_frames()) > 1:
            time.sleep(max(_GIVE_WAY_S, 2 * interval_s))
        return [item for item in gc.get_objects() if type(item) is not tuple]
    finally:
        sys.setswitchinterval(interval_s)


def _count() -> tuple[Counter[type], Counter[type], int]:
    """Returns live objects and their bytes by type, and arrays over foreign memory; refers to none afterwards."""
    ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
    counts: Counter[type] = Counter()
    sizes: Counter[type] = Counter()
    foreign = 0
    seen: set[int] = set()
    waiting = _tracked()
    tracked = waiting
    own = {id(waiting), id(seen), id(counts), id(sizes)}
    while waiting:
        found: list[Any] = []
        for item in waiting:
            kind = type(item)
            if id(item) in own:
                continue
            counts[kind] += 1
            sizes[kind] += _size(item)
            if kind is ndarray and _is_foreign(item, ndarray):
                foreign += 1
            for referent in gc.get_referents(item):
                # What is tracked and no tuple is in the list already.
                if (type(referent) is tuple or not gc.is_tracked(referent)) and id(referent) not in seen:
                    seen.add(id(referent))
                    found.append(referent)
        waiting = found
        own.add(id(found))
    del tracked
    return counts, sizes, foreign


def _size(item: Any) -> int:
    try:
        return sys.getsizeof(item)
    except Exception:  # a type's own __sizeof__ may do anything
        return 0


def _is_foreign(array: Any, ndarray: Any) -> bool:
    base = array.base
    while type(base) is ndarray:
        base = base.base
    return base is not None and not isinstance(base, bytes | bytearray | memoryview)
