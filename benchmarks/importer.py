"""The process that `python -m benchmarks imports` measures: imports its arguments, and nothing else before them."""

from __future__ import annotations

import sys
import time

from benchmarks.smaps import read_process


def main() -> None:
    """Prints name, committed bytes, RSS bytes and seconds for each module; the interpreter is the first."""
    before = read_process("self")
    lines = [("(interpreter)", before.committed_bytes, before.rss_bytes, 0.0)]
    for name in sys.argv[1:]:
        started = time.perf_counter()
        __import__(name)
        took_s = time.perf_counter() - started
        after = read_process("self")
        lines.append((name, after.committed_bytes - before.committed_bytes, after.rss_bytes - before.rss_bytes, took_s))
        before = after
    for line in lines:
        print(*line)


if __name__ == "__main__":
    main()
