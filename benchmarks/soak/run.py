"""The order of a soak: models and answers, warm-up, a calm phase, and then the rough one with its faults.

Between its stretches everybody pauses, all models leave, and idle memory is read: the same state each time, so that
readings can be compared. Calm and rough have the same pace and the same mix of models; in the calm one those that
are asked stay loaded, everybody waits for the answer, and nothing goes wrong.
"""

from __future__ import annotations

import contextlib
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from benchmarks.client import Client, RequestFailed
from benchmarks.percentiles import percentile
from benchmarks.process import HostProcess, running_host
from benchmarks.recording import RECORDED, Recording
from benchmarks.report import Report
from benchmarks.smaps import read_process
from benchmarks.soak import models, plots
from benchmarks.soak.faults import Faults, Unmet
from benchmarks.soak.forms import FORMS, request
from benchmarks.soak.models import Case
from benchmarks.soak.record import LOST, OK, WRONG, Asked, Book, Span, judged
from benchmarks.soak.residents import Residents
from benchmarks.soak.spent import Cores, Spent, taken_of
from benchmarks.soak.traffic import Served, Traffic, rpc_available
from benchmarks.soak.verdict import Drift, Reading, drift, fault_paces, paces, violations
from benchmarks.soak.wire import Connection, Lost
from benchmarks.standing import stand_back
from benchmarks.tracebacks import first_traceback

_WINDOW_S: Final = 10.0
#: Idle readings are this far apart, or less where the soak is short …
_LONGEST_STRETCH_S: Final = 90.0
_STRETCHES: Final = 10
#: … and those of the first two minutes never count, however short it is.
_SETTLING_S: Final = 120.0
#: A soak below this is a short form: it says nothing about drift and times.
_SHORT_S: Final = 240.0
_CALM_SHARE: Final = 0.15
_RESIDENTS_PER_SECOND: Final = 90.0
_OTHERS_PER_SECOND: Final = 15.0
_CLIENTS: Final = 4
_PREPARING_S: Final = 120.0
#: How much longer a soak may go on for the faults that it is to have.
_LONGER_S: Final = 120.0


@dataclass(frozen=True, slots=True)
class Plan:
    """How long, and how much."""

    seconds: float
    models: int
    limit_bytes: int
    seed: int
    faults: tuple[str, ...] = ()
    """Only these; all where there are none."""
    least_faults: int = 0
    """It goes on, for minutes at most, until there were so many kinds of them."""

    @property
    def is_short(self) -> bool:
        """Whether it is too short to say anything about drift and times."""
        return self.seconds < _SHORT_S

    @property
    def calm_s(self) -> float:
        """The calm phase, which comes before `seconds`."""
        return (
            max(1.0, min(180.0, self.seconds * _CALM_SHARE))
            if self.is_short
            else max(30.0, min(180.0, 0.2 * self.seconds))
        )

    @property
    def stretch_s(self) -> float:
        """From one idle reading to the next."""
        return max(2.0 if self.seconds < 30 else 20.0, min(_LONGEST_STRETCH_S, self.seconds / _STRETCHES))

    @property
    def fault_every_s(self) -> float:
        """From the beginning of one fault to that of the next, where it has ended by then."""
        return 0.2 if self.seconds < 30 else 8.0


def run(report: Report, plan: Plan, *, cache: Path | None) -> None:
    """Makes everything, runs it, and reports the verdict."""
    with tempfile.TemporaryDirectory(prefix="modelhost-soak-", dir=cache) as scratch:
        directory = Path(scratch) / "models"
        residents, others = models.make(plan.models, directory, cache=cache, progress=report.progress)
        rpc_port = _free_port() if rpc_available() else None
        settings = {**RECORDED, "PREPARE_ON_LOAD": "true"} | (
            {} if rpc_port is None else {"SERVER_GRPC_PORT": str(rpc_port)}
        )
        with (
            running_host(directory, limit_bytes=plan.limit_bytes, settings=settings) as host,
            contextlib.ExitStack() as stack,
        ):
            recording = stack.enter_context(Recording(report, host, "everything at once"))
            address = urlsplit(host.url)
            assert address.hostname is not None
            assert address.port is not None
            where = (address.hostname, address.port)
            served, book = Served(), Book()
            faults = Faults(
                host, where, directory, others, served, book, plan.seed, 1.0 if plan.seconds < 30 else 10.0, plan.faults
            )
            asking = stack.enter_context(Residents(where, residents, per_second=_RESIDENTS_PER_SECOND))
            traffic = stack.enter_context(
                Traffic(
                    where,
                    None if rpc_port is None else f"127.0.0.1:{rpc_port}",
                    served,
                    book,
                    clients=_CLIENTS,
                    per_second=_OTHERS_PER_SECOND,
                    seed=plan.seed,
                )
            )
            client = stack.enter_context(Client(host.url))
            # What goes wrong comes from elsewhere, too: it reads, hashes and checks at nobody's cost.
            behind = stack.enter_context(ThreadPoolExecutor(1, initializer=stand_back))
            _Soak(report, plan, host, client, residents, others, asking, traffic, faults, behind, book, recording).run()


@dataclass(slots=True)
class _Soak:
    """One run. The main thread's."""

    report: Report
    plan: Plan
    host: HostProcess
    client: Client
    residents: list[Case]
    others: list[Case]
    asking: Residents
    traffic: Traffic
    faults: Faults
    behind: Executor
    """The thread that brings them about."""
    book: Book
    recording: Recording
    started: float = field(default_factory=time.monotonic)
    calm: list[Asked] = field(default_factory=list)
    rough: list[Asked] = field(default_factory=list)
    readings: list[Reading] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)
    faults_done: Counter[str] = field(default_factory=Counter)
    spans: list[Span] = field(default_factory=list)
    spent: dict[str, Spent] = field(default_factory=dict)
    _window: list[Asked] = field(default_factory=list)
    _window_at: float = 0.0
    _windows_peak_bytes: int = 0
    _fault: str = ""

    def run(self) -> None:
        """Runs all phases; the verdict is reported even where the host has ended."""
        try:
            self._warm_up()
            self._phase("calm", self.plan.calm_s, self._loaded(), self.calm)
            end = time.monotonic() + self.plan.seconds
            while self._goes_on(left := end - time.monotonic()):
                self._read_idle()
                self._warm_residents()
                seconds = min(left, self.plan.stretch_s) if left > 0 else self.plan.stretch_s
                self._phase("rough", seconds, self.others, self.rough)
            self._read_idle()
        except (RequestFailed, Lost, OSError) as error:
            self.unmet.append(f"the soak could not go on: {type(error).__name__}: {error}")
        self._conclude()

    def _goes_on(self, left_s: float) -> bool:
        """Whether there is another stretch: for the time that is left, or for faults that are still wanted."""
        if left_s > 0.5 * min(1.0, self.plan.stretch_s):
            return True
        is_wanting = len(self.faults_done) < self.plan.least_faults
        return is_wanting and left_s > -_LONGER_S

    # --- phases ----------------------------------------------------------------------------------------

    def _warm_up(self) -> None:
        """Asks everything once, so that all is prepared; checks the answers."""
        with Connection(self.faults.address) as connection:
            for index, case in enumerate([*self.others, *self.residents]):
                for question, form in zip(case.questions, FORMS, strict=False):
                    asked = request(case, question, form)
                    outcome, text = judged(asked, connection.ask(asked.data))
                    self.book.note(outcome, text)
                if index % 5 == 4:
                    self.report.progress(f"{index + 1} of {self.plan.models} models prepared and asked")
        self._warm_residents()
        self.faults.known()  # tries what can be done here, which takes seconds

    def _warm_residents(self) -> None:
        """Loads the residents and has their runs be known, so that no phase begins with that."""
        with Connection(self.faults.address) as connection:
            for case in self.residents:
                for question in case.questions * 3:
                    for form in FORMS:
                        asked = request(case, question, form)
                        self.book.note(*judged(asked, connection.ask(asked.data)))

    def _loaded(self) -> list[Case]:
        """Returns what the calm phase asks: of the models that would crowd each other out, others of the same size."""
        twins = [case for case in self.others if case.kind == "conv20"] or self.others[:1]
        calm = [twins[index % len(twins)] if case.is_on_heap else case for index, case in enumerate(self.others)]
        with Connection(self.faults.address) as connection:
            for case in calm:
                for question in case.questions * 3:
                    asked = request(case, question, "json")
                    self.book.note(*judged(asked, connection.ask(asked.data), self.faults.served.variants(case.name)))
        return calm

    def _phase(self, name: str, seconds: float, cases: Sequence[Case], kept: list[Asked]) -> None:
        """Has everybody ask for so long; in the rough phase with faults."""
        is_rough = name == "rough"
        if not (is_rough and self.rough):
            self.recording.mark(name)
        names = [case.name for case in self.residents]
        cores, taken = self._cores(), taken_of(self.client.stats(), names)
        self.traffic.go(cases, may_leave=is_rough)
        self.asking.go()
        self._window_at = time.monotonic()
        end = time.monotonic() + seconds
        try:
            for _ in self._until(end, every_s=self.plan.fault_every_s if is_rough else 1.0):
                if is_rough:
                    self._go_wrong()
                self._look(name, kept, self.asking.take())
        finally:
            self.traffic.stop()
            self._look(name, kept, self.asking.stop(), is_last=True)
        spent = self.spent.setdefault(name, Spent())
        spent.add(cores, self._cores(), taken, taken_of(self.client.stats(), names))

    def _cores(self) -> Cores:
        return Cores.read(self.host.pid, [self.asking.pid])

    def _until(self, end: float, *, every_s: float) -> Iterator[None]:
        due = time.monotonic() + every_s
        while due < end:
            time.sleep(max(0.0, due - time.monotonic()))
            yield
            due = max(due + every_s, time.monotonic())

    def _go_wrong(self) -> None:
        name = self.faults.next()
        began = time.monotonic()
        text = ""
        try:
            self.behind.submit(self.faults.known()[name]).result()
        except Unmet as error:
            text = f"{name}: {error}"
        except Lost as error:
            text = f"{name}: a request was lost: {error}"
        if text:
            self.unmet.append(text)
        self.faults_done[name] += 1
        self.spans.append(Span(name, began, time.monotonic()))
        self.report.add(
            "fault",
            fault=name,
            began_s=self._since(began),
            took_s=round(time.monotonic() - began, 3),
            unmet=text or None,
        )

    # --- looking -----------------------------------------------------------------------------------------

    def _since(self, at: float) -> float:
        return round(at - self.started, 2)

    def _look(
        self, phase: str, kept: list[Asked], taken: tuple[list[Asked], list[str]], *, is_last: bool = False
    ) -> None:
        """Takes in what the residents' client has seen; reports a window where one is full."""
        asked, texts = taken
        for one in asked:
            self.book.note(f"{one.outcome}")
        for text in texts:
            if len(self.book.problems) < 20:
                self.book.problems.append(text)
        kept += asked
        self._window += asked
        figures = self.host.group_figures()
        usage = figures.usage_bytes if figures else self.host.usage_bytes()
        self._windows_peak_bytes = max(self._windows_peak_bytes, usage)
        now = time.monotonic()
        if now - self._window_at < _WINDOW_S and not is_last:
            return
        times = [one.latency_s * 1e3 for one in self._window if one.outcome == OK]
        totals = self.book.snapshot()
        self.report.add(
            "window",
            phase=phase,
            at_s=self._since(now),
            answers=len(times),
            p50_ms=round(percentile(times, 0.5), 2),
            p99_ms=round(percentile(times, 0.99), 2),
            late_p99_ms=round(percentile([one.late_s * 1e3 for one in self._window], 0.99), 2),
            usage_bytes=usage,
            usage_peak_bytes=self._windows_peak_bytes,
            committed_bytes=read_process(self.host.pid).committed_bytes if self.host.is_alive else 0,
            max_usage_bytes=figures.peak_bytes if figures else None,
            limit_hits=figures.limit_hits if figures else None,
            oom_kills=figures.oom_kills if figures else None,
            **_shown(totals),
        )
        row = self.report.rows[-1]
        self.report.progress(
            f"{row['at_s']:.0f} s {phase}: residents {len(times)}, p50 {row['p50_ms']}, p99 {row['p99_ms']} ms; "
            f"usage {usage / 2**20:.0f} MB (peak {self._windows_peak_bytes / 2**20:.0f}); in all {totals[OK]} right, "
            f"{row['refused']} refused, {row['left']} left, {row['lost']} lost, {totals[WRONG]} wrong; "
            f"{self.faults_done.total()} faults"
        )
        self._window, self._window_at, self._windows_peak_bytes = [], now, 0

    def _read_idle(self) -> None:
        """Has all models leave, and reads what is left when nobody asks."""
        lowest: Reading | None = None
        for _ in range(1 if self.plan.is_short else 4):  # what the host trims when it is idle takes a sample or two
            self.client.cleanup()
            time.sleep(0.3)
            found = Reading(time.monotonic(), read_process(self.host.pid).committed_bytes, self.host.usage_bytes())
            if lowest is None or found.committed_bytes < lowest.committed_bytes:
                lowest = found
        assert lowest is not None
        self.readings.append(lowest)
        loaded = [model["name"] for model in self.client.memory()["models"]]
        self.report.add(
            "idle",
            at_s=self._since(lowest.at),
            committed_bytes=lowest.committed_bytes,
            usage_bytes=lowest.usage_bytes,
            loaded=len(loaded),
        )
        if loaded:
            self.unmet.append(f"idle models did not leave when they were told to: {loaded[:3]}")

    # --- the end -------------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        figures = self.host.group_figures()
        found, pace = drift(self.readings, settling_s=_SETTLING_S), paces(self.calm, self.rough)
        totals = self.book.snapshot()
        for one in pace:
            self.report.add(
                "resident",
                model=one.model,
                answers=one.answers,
                calm_p50_ms=one.calm_p50_ms,
                calm_p99_ms=one.calm_p99_ms,
                p50_ms=one.p50_ms,
                p99_ms=one.p99_ms,
                slower=round(one.slower, 2),
            )
        for phase, spent in self.spent.items():
            self.report.add("cores", phase=phase, **spent.cores())
        for case in self.residents:
            for phase, spent in self.spent.items():
                self.report.add("parts", model=case.name, phase=phase, **spent.parts(case.name))
        for during in fault_paces(self.calm, self.rough, self.spans):
            self.report.add(
                "during",
                fault=during.fault,
                answers=during.answers,
                p50_ms=during.p50_ms,
                p99_ms=during.p99_ms,
                late_percent=round(during.late_share * 100, 2),
            )
        for text in violations(
            outcomes=totals,
            oom_kills=figures.oom_kills if figures else 0,
            is_alive=self.host.is_alive,
            unmet=self.unmet,
            drift=found,
            paces=pace,
            is_short=self.plan.is_short,
        ):
            self.report.require(False, text)
        for text in self.book.problems:
            self.report.require(False, f"for example: {text}")
        if traceback := first_traceback(self.host.log.read_text(errors="replace")):
            self.report.require(False, f"the host's log has a traceback: {traceback}")
        if not self.host.is_alive:
            self.report.require(False, self.host.last_words())
        self._add_verdict(found, totals)
        plots.add(self.report)
        self._print()

    def _add_verdict(self, found: Drift, totals: Counter[str]) -> None:
        figures = self.host.group_figures()
        self.report.add(
            "verdict",
            passed=not self.report.violations,
            took_s=self._since(time.monotonic()),
            rough_s=self.plan.seconds,
            models=len(self.residents) + len(self.others),
            drift_bytes=round(found.bytes) if found.is_known else None,
            drift_percent=round(found.share * 100, 3) if found.is_known else None,
            idle_readings=found.readings,
            settling_bytes=round(found.settling_bytes) if found.is_known else None,
            idle_committed_bytes=self.readings[-1].committed_bytes if self.readings else None,
            late_p99_calm_ms=round(percentile([one.late_s * 1e3 for one in self.calm], 0.99), 2),
            late_p99_rough_ms=round(percentile([one.late_s * 1e3 for one in self.rough], 0.99), 2),
            max_usage_bytes=figures.peak_bytes if figures else None,
            limit_hits=figures.limit_hits if figures else None,
            oom_kills=figures.oom_kills if figures else None,
            outcomes=dict(totals),
            faults=dict(self.faults_done),
            **_shown(totals),
        )

    def _print(self) -> None:
        self.report.table(
            "resident",
            {
                "model": "resident",
                "answers": "answers",
                "calm_p50_ms": "calm p50",
                "calm_p99_ms": "calm p99",
                "p50_ms": "p50",
                "p99_ms": "p99",
                "slower": "p99 times calm",
            },
        )
        self.report.table(
            "parts",
            {
                "model": "resident",
                "phase": "phase",
                "request_ms": "mean",
                "compute_input_ms": "decode",
                "queue_ms": "wait",
                "compute_infer_ms": "run",
                "compute_output_ms": "encode",
            },
        )
        self.report.table(
            "cores",
            {
                "phase": "cores in use",
                "host_cores": "host",
                "children_cores": "its children",
                "clients_cores": "clients",
                "others_cores": "others",
                "waited_cores": "host's threads without one",
            },
        )
        self.report.table(
            "during",
            {
                "fault": "residents during",
                "answers": "answers",
                "p50_ms": "p50",
                "p99_ms": "p99",
                "late_percent": "% over twice calm p99",
            },
        )
        self.report.table(
            "idle", {"at_s": "idle at", "committed_bytes": "committed", "usage_bytes": "usage", "loaded": "loaded"}
        )
        self.report.summary("verdict")


def _shown(totals: Counter[str]) -> dict[str, Any]:
    lost = sum(count for outcome, count in totals.items() if outcome.startswith(LOST))
    left = totals["left"]
    refused = totals.total() - totals[OK] - totals[WRONG] - lost - left
    return {"right": totals[OK], "refused": refused, "left": left, "lost": lost, "wrong": totals[WRONG]}


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
