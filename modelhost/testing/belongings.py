"""What a process has open: files, threads and mappings by name, to say what it is that stays."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import Counter
from dataclasses import dataclass
from typing import Final

#: Numbers and random parts of names: what differs by them only is one thing.
_DIGITS: Final = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Belongings:
    """Each by name: how many there are, of mappings the bytes."""

    files: Counter[str]
    threads: Counter[str]
    mappings: Counter[str]
    """Files and shared memory that are mapped, in bytes; private memory without a name is not in it."""


def look() -> Belongings:
    """Returns what this process has open now; a kind that cannot be read is empty. Any thread; a millisecond."""
    files, mappings = Counter[str](), Counter[str]()
    with contextlib.suppress(OSError):
        for number in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):  # the one that lists them is closed by now
                target = os.readlink(f"/proc/self/fd/{number}")
                files[target if target.startswith("/") else _DIGITS.sub("*", target)] += 1
    with contextlib.suppress(OSError), open("/proc/self/maps", errors="replace") as lines:
        for line in lines:
            span, access, *rest = line.split(maxsplit=5)
            if len(rest) == 4 and (access.endswith("s") or rest[3].startswith("/")):
                start, end = (int(part, 16) for part in span.split("-"))
                mappings[rest[3].strip()] += end - start
    threads = Counter(f"thread {_DIGITS.sub('*', thread.name)}" for thread in threading.enumerate())
    return Belongings(files, threads, mappings)
