"""Threads of the host's own that are there from the start: later the system may have none to give."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor


def one_thread(name: str) -> ThreadPoolExecutor:
    """Returns an executor whose one thread runs already.

    An executor that starts its thread with the first job, and cannot, raises and keeps the job: a thread that
    is started later would do what nobody waits for any more. Raises RuntimeError where there is none to be had.
    """
    executor = ThreadPoolExecutor(1, thread_name_prefix=name)
    executor.submit(int).result()
    return executor
