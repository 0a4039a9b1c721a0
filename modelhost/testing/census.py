"""Which Python objects live, and how much memory they are."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


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

    An object that only a running function's variable holds is missed unless it is a container.
    """
    ndarray = getattr(sys.modules.get("numpy"), "ndarray", None)
    counts: Counter[type] = Counter()
    sizes: Counter[type] = Counter()
    foreign = 0
    seen: set[int] = set()
    waiting: list[Any] = gc.get_objects()
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
                # What is tracked is in the list already.
                if not gc.is_tracked(referent) and id(referent) not in seen:
                    seen.add(id(referent))
                    found.append(referent)
        waiting = found
        own.add(id(found))
    del tracked
    names = {kind: f"{kind.__module__}.{kind.__qualname__}".removeprefix("builtins.") for kind in counts}
    by_name, bytes_by_name = Counter[str](), Counter[str]()
    for kind, name in names.items():
        by_name[name] += counts[kind]
        bytes_by_name[name] += sizes[kind]
    return Census(sum(sizes.values()), dict(by_name), dict(bytes_by_name), foreign)


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
