"""Starts, works and kills a host, again and again; what was not as it has to be is a violation."""

from __future__ import annotations

import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx
import numpy as np

from benchmarks.client import Client, RequestFailed
from benchmarks.kill.stage import CONTENTS, Killed, Repository, start_host, start_preparing, url_of
from benchmarks.models import conv_nets
from benchmarks.report import Report

_MODELS: Final = 3
_SIZE_MB: Final = 1.0
_START_S: Final = 60.0
#: Moments of a kill: within the start, or within the work after it.
_EARLY_SHARE: Final = 0.25
_EARLY_S: Final = 1.5
_WORK_S: Final = 1.5
_PREPARE_SHARE: Final = 0.3


class Run:
    """One series of kills. `clean` and `right` are found at each start, before the next work begins."""

    def __init__(self, repository: Repository, folder: Path, seed: int, report: Report) -> None:
        self.repository, self.folder, self.report = repository, folder, report
        self.random = np.random.default_rng(seed)
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.totals: dict[str, int] = {}
        self.starts_s: list[float] = []

    def cycle(self, number: int) -> None:
        """Starts a host and kills it: while it starts, or when it was found clean and is at work."""
        started = time.monotonic()
        host = start_host(self.repository, self.folder, number)
        is_early = self.random.random() < _EARLY_SHARE
        if is_early:
            url_of(host, until=started + self.random.uniform(0, _EARLY_S))
            self._kill(host, number, "starting")
            self.wrong += [f"start {number}: {text}" for text in host.complaints()]
            return
        url = self._verified(host, number, started)
        if url is None:
            host.kill(with_group=True)
            return
        with ExitStack() as stack:
            preparing = None
            if self.random.random() < _PREPARE_SHARE:
                self.repository.lose_artifact(self.random)
                preparing = start_preparing(self.repository, self.folder, number)
            stop = threading.Event()
            workers = [
                threading.Thread(target=self._work, args=(work, url, seed, stop), daemon=True)
                for work, seed in ((self._ask, 1), (self._change, 2))
            ]
            for worker in workers:
                stack.callback(worker.join)
                worker.start()
            stack.callback(stop.set)
            time.sleep(self.random.uniform(0, _WORK_S))
            if preparing is not None:
                self.wrong += preparing.kill(with_group=bool(self.random.random() < 0.5))
                self.done["killed while preparing beside"] += 1
            self._kill(host, number, "at work")

    def last(self, number: int) -> None:
        """Starts a host once more, and ends it as one should."""
        started = time.monotonic()
        host = start_host(self.repository, self.folder, number)
        self._verified(host, number, started)
        host.process.terminate()
        if host.process.wait(_START_S) != 0:
            self.wrong.append(f"start {number}: ended with status {host.process.returncode}")
        self.wrong += [f"start {number}: {text}" for text in self.repository.broken()]

    def _kill(self, host: Killed, number: int, moment: str) -> None:
        self.wrong += [f"kill {number}: {text}" for text in host.kill(with_group=bool(self.random.random() < 0.5))]
        self.done[f"killed {moment}"] += 1

    # --- after a start --------------------------------------------------------------------------------

    def _verified(self, host: Killed, number: int, started: float) -> str | None:
        """Returns where the host listens, when all has been looked at; None where it does not."""
        url = url_of(host, until=started + _START_S)
        if url is None:
            self.wrong.append(f"start {number}: it did not come up: {host.complaints()[-3:]}")
            return None
        self.starts_s.append(time.monotonic() - started)
        with Client(url) as client:
            try:
                self._check_totals(url, number)
                for name, index in self.repository.current.items():
                    answer = client.infer(name, self.repository.question(name))
                    if not self.repository.is_right(name, answer, of=index):
                        self.wrong.append(f"start {number}: {name} answered wrongly")
                    self.done["checked answers"] += 1
            except RequestFailed as error:
                self.wrong.append(f"start {number}: {error}")
        self.wrong += [f"start {number}: {text}" for text in host.complaints()]
        self.wrong += [f"start {number}: {text}" for text in self.repository.broken()]
        self.done["clean starts looked at"] += 1
        return url

    def _check_totals(self, url: str, number: int) -> None:
        """Totals that the host before began with are still there: what it counted since may be, for a moment's."""
        models: list[dict[str, Any]] = httpx.get(f"{url}/v2/models/stats", trust_env=False).json()["model_stats"]
        found = {model["name"]: int(model["inference_count"]) for model in models}
        lost = [
            f"{name}: {found.get(name, 0)} < {known}"
            for name, known in self.totals.items()
            if found.get(name, 0) < known
        ]
        self.wrong += [f"start {number}: totals went back, {text}" for text in lost]
        self.totals = found

    # --- work -----------------------------------------------------------------------------------------

    def _work(self, work: Any, url: str, seed: int, stop: threading.Event) -> None:
        """Does one thing after another until the host is gone."""
        random = np.random.default_rng(int(self.random.integers(1 << 31)) + seed)
        with Client(url, timeout_s=10) as client:
            while not stop.is_set():
                try:
                    work(client, random)
                except RequestFailed as error:
                    if str(error)[:3].isdigit():  # it has answered, with an error
                        self.done[f"refused while files change: {str(error)[:3]}"] += 1
                    else:
                        return

    def _ask(self, client: Client, random: np.random.Generator) -> None:
        name = str(random.choice(list(self.repository.contents)))
        answer = client.infer(name, self.repository.question(name))
        self.done["answers at work"] += 1
        if not self.repository.is_right(name, answer):
            self.wrong.append(f"{name} answered what none of its contents answers")

    def _change(self, client: Client, random: np.random.Generator) -> None:
        name = str(random.choice(list(self.repository.contents)))
        match int(random.integers(4)):
            case 0:
                self.repository.put(name, (self.repository.current[name] + 1) % CONTENTS)
                client.index()
                self.done["files replaced"] += 1
            case 1:
                client.unload(name)
                self.done["unloads"] += 1
            case 2:
                client.load(name)
                self.done["loads"] += 1
            case _:
                self.repository.lose_artifact(random)
                client.unload(name)
                self.done["artifacts lost"] += 1


def run(report: Report, *, times: int, seed: int, cache: Path | None) -> None:
    """Kills `times` hosts; one line says what was done and found."""
    models = conv_nets(_MODELS * CONTENTS, size_mb=_SIZE_MB, cache=cache, label="kill")
    with tempfile.TemporaryDirectory(prefix="modelhost-kill-") as scratch:
        directory, logs = Path(scratch) / "models", Path(scratch) / "logs"
        directory.mkdir()
        logs.mkdir()
        series = Run(Repository.make(directory, models, _MODELS), logs, seed, report)
        for number in range(times):
            series.cycle(number)
            for log in logs.glob(f"*-{number}.*"):
                log.unlink()
            report.progress(f"{number + 1} of {times} killed, {len(series.wrong)} violations {series.wrong[-1:]}")
        series.last(times)
    report.add(
        "total",
        kills=times,
        violations=len(series.wrong),
        start_median_s=float(np.median(series.starts_s)),
        start_max_s=max(series.starts_s),
        **{name.replace(" ", "_"): count for name, count in sorted(series.done.items())},
    )
    for text, count in Counter(series.wrong).items():
        report.require(False, text if count == 1 else f"{text} ({count} times)")
    report.summary("total")
