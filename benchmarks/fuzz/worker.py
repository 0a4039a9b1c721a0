"""A process that fuzzes: changes seeds, sends them over some connections in turn, and reads what comes back."""

from __future__ import annotations

import os
import random
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.connection import Connection as Pipe
from typing import Any, Final

from benchmarks.fuzz import corpus
from benchmarks.fuzz.mutate import Mutator, Sample
from benchmarks.fuzz.wire import Finding, Line
from benchmarks.spawned import Spawned

_LINES: Final = 4
#: Requests in one write, at most: what they are answered with has to fit into the sockets' buffers meanwhile.
_BATCH: Final = 16
_BATCH_BYTES: Final = 48 << 10
#: So many are bytes on a connection of their own, and of these so many do not wait for what is answered.
_RAW_SHARE: Final = 0.12
_HASTY_SHARE: Final = 0.25
#: One call over gRPC for so many requests.
_CALL_EVERY: Final = 100
_FINDINGS_KEPT: Final = 20
_PATIENCE_S: Final = 600.0


@dataclass(slots=True)
class Outcome:
    """What became of some requests."""

    requests: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def merge(self, other: Outcome) -> None:
        """Takes another's in."""
        self.requests += other.requests
        self.statuses += other.statuses
        self.findings += other.findings


class Worker(Spawned):
    """The process, for the scope of the context."""

    def __init__(self, address: tuple[str, int], rpc_address: str | None, seed: str) -> None:
        super().__init__(_main, address, rpc_address, seed)

    def begin(self, requests: int) -> None:
        """Has it send so many; `outcome` waits for them."""
        self._tell(requests)

    def outcome(self) -> Outcome:
        """Returns what became of them. Raises RequestFailed where the process has ended, or hangs."""
        found: Outcome = self._answer(_PATIENCE_S, "a process that fuzzes has ended, or got no answer for minutes")
        return found


def _main(pipe: Pipe, address: tuple[str, int], rpc_address: str | None, seed: str) -> None:
    parent = os.getppid()
    fuzzer = Fuzzer(address, rpc_address, seed)
    while True:
        while not pipe.poll(1.0):
            if os.getppid() != parent:
                return
        pipe.send(fuzzer.run(pipe.recv()))


class Fuzzer:
    """Sends what a mutator makes. One thread's."""

    def __init__(
        self, address: tuple[str, int], rpc_address: str | None, seed: str, *, seeds: corpus.Corpus | None = None
    ) -> None:
        self._mutator = Mutator(seeds or corpus.read(), seed)
        self._random = random.Random(f"{seed} order")
        self._lines = [Line(address) for _ in range(_LINES)]
        self._raw = Line(address)
        self._rpc = None if rpc_address is None else _rpc(rpc_address, self._mutator)

    def run(self, requests: int) -> Outcome:
        """Sends so many requests, or a few more, and returns what became of them."""
        outcome = Outcome()
        while outcome.requests < requests and len(outcome.findings) < _FINDINGS_KEPT:
            batches = [(line, self._batch()) for line in self._lines]
            for line, batch in batches:
                line.send(batch)
            for line, batch in batches:
                self._take(outcome, line, batch)
            for _ in range(self._binomial(_LINES * _BATCH, _RAW_SHARE)):
                self._note(
                    outcome, self._raw.send_raw(self._mutator.raw(), waits=not self._random.random() < _HASTY_SHARE)
                )
                outcome.requests += 1
            if self._rpc is not None:
                for _ in range(max(1, _LINES * _BATCH // _CALL_EVERY)):
                    status, finding = self._rpc.call()
                    outcome.statuses[status] += 1
                    self._note(outcome, finding)
                    outcome.requests += 1
        for line in (*self._lines, self._raw):
            outcome.statuses.update({str(status): count for status, count in line.statuses.items()})
            line.statuses.clear()
            line.close()
        return outcome

    def _batch(self) -> list[Sample]:
        batch: list[Sample] = []
        size = 0
        for _ in range(self._random.randint(1, _BATCH)):
            sample = self._mutator.framed()
            size += len(sample.data)
            if batch and size > _BATCH_BYTES:
                break
            batch.append(sample)
        return batch

    def _take(self, outcome: Outcome, line: Line, batch: list[Sample]) -> None:
        """Reads a batch's answers; what was not answered because the connection had to end is sent again."""
        left = batch
        while left:
            came, finding = line.receive(left)
            outcome.requests += came
            self._note(outcome, finding)
            left = left[max(came, 1) :] if finding is not None else left[came:]
            if left:
                line.send(left)

    def _note(self, outcome: Outcome, finding: Finding | None) -> None:
        if finding is not None:
            outcome.findings.append(finding)

    def _binomial(self, tries: int, share: float) -> int:
        return sum(self._random.random() < share for _ in range(tries))


def _rpc(address: str, mutator: Mutator) -> Any:
    from benchmarks.fuzz.rpc import Calls  # needs gRPC

    return Calls(address, mutator)
