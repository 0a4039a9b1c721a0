"""The models that are always in use, asked at a steady pace from a process of their own, so that they are measured
by a client that does nothing else.

A connection for each of them. What is late because the answer before it was late counts as latency: the host made
it wait. What is late because this process was not woken in time does not, and is counted by itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection as Pipe
from typing import Final

from benchmarks.client import RequestFailed
from benchmarks.soak.forms import FORMS, Request, request
from benchmarks.soak.models import Case
from benchmarks.soak.record import LOST, OK, Asked, judged
from benchmarks.soak.wire import Connection, Lost
from benchmarks.spawned import Spawned
from benchmarks.standing import stand_in_front

_PATIENCE_S: Final = 160.0
_TEXTS_KEPT: Final = 5


class Residents(Spawned):
    """The process that asks, for the scope of the context; between `go` and `stop` it does. One thread's."""

    def __init__(self, address: tuple[str, int], cases: Sequence[Case], *, per_second: float) -> None:
        super().__init__(_main, address, list(cases), len(cases) / per_second)

    def go(self) -> None:
        """Begins to ask."""
        self._tell("go")

    def stop(self) -> tuple[list[Asked], list[str]]:
        """Ends asking; returns what was asked since the last `take`, and what was wrong, in words."""
        return self._call("stop")

    def take(self) -> tuple[list[Asked], list[str]]:
        """Returns what was asked since the last call, and what was wrong, in words."""
        return self._call("take")

    def _call(self, word: str) -> tuple[list[Asked], list[str]]:
        silent = "the process that asks the resident models does not answer"
        try:
            self._tell(word)
        except OSError:
            raise RequestFailed(silent) from None
        answer: tuple[list[Asked], list[str]] = self._answer(_PATIENCE_S, silent)
        return answer


def _main(pipe: Pipe, address: tuple[str, int], cases: list[Case], interval_s: float) -> None:
    parent = os.getppid()
    stand_in_front()
    askers = [_Asker(address, case, interval_s, index / len(cases)) for index, case in enumerate(cases)]
    threads: list[threading.Thread] = []
    while True:
        while not pipe.poll(1.0):
            if os.getppid() != parent:
                return
        word = pipe.recv()
        if word == "go":
            start = time.monotonic() + 0.05
            for asker in askers:
                asker.ends.clear()
            threads = [threading.Thread(target=asker.ask, args=(start,), daemon=True) for asker in askers]
            for thread in threads:
                thread.start()
            continue
        if word == "stop":
            for asker in askers:
                asker.ends.set()
            for thread in threads:
                thread.join()
        taken = [asker.take() for asker in askers]
        pipe.send(([one for asked, _ in taken for one in asked], [text for _, texts in taken for text in texts]))


class _Asker:
    """Asks one model. `ask` has a thread of its own."""

    def __init__(self, address: tuple[str, int], case: Case, interval_s: float, phase: float) -> None:
        self.ends = threading.Event()
        self._connection = Connection(address)
        self._interval_s, self._phase = interval_s, phase
        self._requests = [request(case, question, form) for form in FORMS for question in case.questions]
        #: Answers that were found right, as they came: most are the same again.
        self._known: dict[bytes, set[bytes]] = {asked.data: set() for asked in self._requests}
        self._asked: list[Asked] = []
        self._texts: list[str] = []

    def take(self) -> tuple[list[Asked], list[str]]:
        """Returns what was asked since the last call."""
        asked, self._asked = self._asked, []
        texts, self._texts = self._texts, []
        return asked, texts

    def ask(self, start: float) -> None:
        """Asks at the pace until it has to end."""
        due, turn, free_at = start + self._phase * self._interval_s, 0, 0.0
        while not self.ends.wait(max(0.0, due - time.monotonic())):
            asked = self._requests[turn % len(self._requests)]
            sent = time.monotonic()
            is_free = free_at <= due  # else it is the host that has kept this one waiting since it was due
            outcome = self._ask(asked)
            free_at = time.monotonic()
            begun, late_s = (sent, sent - due) if is_free else (due, 0.0)
            self._asked.append(Asked(sent, asked.case.name, free_at - begun, late_s, outcome))
            due, turn = due + self._interval_s, turn + 1
            if due < free_at - 1.0:  # a pause of the machine is one late answer, not hundreds
                due = free_at

    def _ask(self, asked: Request) -> str:
        try:
            reply = self._connection.ask(asked.data)
        except Lost as error:
            self._say(f"{asked.case.name} ({asked.form}): {error}")
            return f"{LOST}: {str(error)[:40]}"
        known = self._known[asked.data]
        if reply.status == 200 and reply.body in known:
            return OK
        outcome, text = judged(asked, reply)
        if outcome == OK and len(known) < 8:
            known.add(reply.body)
        self._say(text)
        return outcome

    def _say(self, text: str) -> None:
        if text and len(self._texts) < _TEXTS_KEPT:
            self._texts.append(text)
