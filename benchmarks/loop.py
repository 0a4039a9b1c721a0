"""The plain session loop: one `onnxruntime.InferenceSession`, run again and again, and no server.

    python -m benchmarks.loop FILE QUESTION

A yardstick of `python -m benchmarks throughput`. Each line that it reads, `{"threads": 2, "seconds": 3}`,
makes it run the question so long on so many threads, each run on one, and answer with how many and
how long they took. Imports nothing of modelhost.
"""

from __future__ import annotations

import json
import statistics
import sys
import threading
import time

import numpy as np
import onnxruntime as ort


def main() -> None:
    """Loads what the command line says, then runs as the lines say, until they end."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
    feed = {"x": np.load(sys.argv[2])}
    for line in sys.stdin:
        order = json.loads(line)
        times: list[float] = []
        started = time.perf_counter()
        threads = [
            threading.Thread(target=_repeat, args=(session, feed, started + order["seconds"], times))
            for _ in range(order["threads"])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        duration_s = time.perf_counter() - started
        times.sort()
        answer = {
            "requests": len(times),
            "duration_s": duration_s,
            "p50_ms": statistics.median(times) * 1e3,
            "p99_ms": times[int(len(times) * 0.99)] * 1e3,
            "max_ms": times[-1] * 1e3,
        }
        print(json.dumps(answer), flush=True)


def _repeat(session: ort.InferenceSession, feed: dict[str, object], until: float, times: list[float]) -> None:
    """Runs until that time, once at least; adds how long each run took."""
    own: list[float] = []
    now = time.perf_counter()
    while not own or now < until:
        session.run(["y"], feed)
        before, now = now, time.perf_counter()
        own.append(now - before)
    times += own


if __name__ == "__main__":
    main()
