"""Three nodes, 200 models, requests by popularity, and a node that is killed: who answers, right, how soon, from where.

The same cluster, models, clients and seeds for modelhost's replicas and for plain Serve with `@serve.multiplexed`, to
which somebody has to say how many models a replica may hold: as many as fit by their files' sizes, or as many as come.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks.artifacts import prepare
from benchmarks.cluster.nodes import Node, Nodes, running, wait_until
from benchmarks.models import ModelSet
from benchmarks.percentiles import percentile
from benchmarks.places import ROOT
from benchmarks.report import Report

_MB: Final = 1 << 20
_NODES: Final = 3
_START_S: Final = 180.0
#: What a plain replica holds before its first model, and what a session takes beyond its weights.
_PLAIN_BYTES: Final = 130 * _MB
_SESSION_SHARE: Final = 1.25

#: Requests for one model have to stay on so many replicas, one that a second was busy for included.
_FEW: Final = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done to each contender."""

    seconds: float
    """Of load before the kill, and again after it."""
    warm_s: float
    clients: int
    exponent: float
    seed: int
    share_bytes: int


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to serve the models."""

    name: str
    deploy: Callable[[], Any]
    """Returns the application; called when the cluster is up."""
    places: Callable[[str], list[tuple[int, list[str]]]]
    """Returns each replica's process with the models that it holds."""


@dataclass(slots=True)
class Answers:
    """What clients have written."""

    lines: list[tuple[float, str, str, float]] = field(default_factory=list)

    def between(self, began: float, ended: float) -> Answers:
        """Those that were asked in that time."""
        return Answers([line for line in self.lines if began <= line[0] < ended])

    def figures(self, seconds: float) -> dict[str, Any]:
        """Counts and times."""
        outcomes = Counter(outcome for _, _, outcome, _ in self.lines)
        times = [took for _, _, outcome, took in self.lines if outcome == "right"]
        failed = {outcome: count for outcome, count in outcomes.items() if outcome not in ("right", "wrong")}
        return {
            "requests": len(self.lines),
            "right": outcomes["right"],
            "wrong": outcomes["wrong"],
            "failed": sum(failed.values()),
            "per_second": len(self.lines) / seconds,
            "p50_ms": percentile(times, 0.5),
            "p99_ms": percentile(times, 0.99),
            "longest_ms": max(times, default=0.0),
            "failures": dict(Counter(failed).most_common(5)),
        }


def run(report: Report, models: ModelSet, plan: Plan, *, names: Sequence[str] = ()) -> None:
    """Measures each contender in a cluster of its own."""
    prepare(models.directory, progress=report.progress)
    size_bytes = sum(file.stat().st_size for file in models.files) // len(models.files)
    each = max(1, int((plan.share_bytes - _PLAIN_BYTES) / (size_bytes * _SESSION_SHARE)))
    for contender in (_modelhost(models, plan), _plain(models, plan, each), _plain(models, plan, -1)):
        if not names or contender.name in names:
            _measure(report, models, contender, plan)
    report.table(
        "cluster",
        {
            "contender": "three nodes",
            "held": "models held",
            "copies": "copies",
            "most_replicas": "replicas of one, at most",
            "right": "right",
            "wrong": "wrong",
            "failed": "failed",
            "per_second": "a second",
            "p50_ms": "p50",
            "p99_ms": "p99",
            "kills": "oom kills",
        },
    )
    report.table(
        "killed",
        {
            "contender": "a node is killed",
            "right": "right",
            "wrong": "wrong",
            "failed": "failed",
            "per_second": "a second",
            "p50_ms": "p50",
            "p99_ms": "p99",
            "longest_ms": "longest",
            "held": "models held",
            "kills": "oom kills",
        },
    )
    _judge(report)


def _judge(report: Report) -> None:
    for row in report.rows:
        if row["kind"] not in ("cluster", "killed") or row["contender"] != "modelhost":
            continue
        for what in ("wrong", "failed"):
            report.require(not row[what], f"{row[what]} requests {what}: {row['failures']}")
        report.require(not row["kills"], f"the kernel has killed {row['kills']} processes")
        if row["kind"] == "cluster":
            report.require(row["most_replicas"] <= _FEW, f"a model is on {row['most_replicas']} replicas")


# --- contenders ------------------------------------------------------------------------------------------


def _modelhost(models: ModelSet, plan: Plan) -> Contender:
    def deploy() -> Any:
        from modelhost.cluster.ray import build

        share, directory = str(plan.share_bytes), str(models.directory)
        return build({"models": directory, "memory": share, "replicas": str(_NODES)})

    def places(url: str) -> list[tuple[int, list[str]]]:
        monitor, memory = _get(url, "/monitor"), _get(url, "/memory")
        pids = {row["worker"]: row["pid"] for row in monitor["host"]["workers"]}
        held: dict[str, list[str]] = {name: [] for name in pids}
        for model in memory["models"]:
            if model["state"] == "ready":
                held.setdefault(model["replica"], []).append(model["name"])
        return [(pids.get(name, 0), found) for name, found in held.items()]

    return Contender("modelhost", deploy, places)


def _plain(models: ModelSet, plan: Plan, each: int) -> Contender:
    def deploy() -> Any:
        from benchmarks.cluster import plain

        return plain.build(  # type: ignore[no-untyped-call]
            models.directory, replicas=_NODES, memory_bytes=plan.share_bytes, models_each=each
        )

    def places(url: str) -> list[tuple[int, list[str]]]:
        return [(one["pid"], one["models"]) for one in _get(url, "/held")]

    return Contender("Serve, as many as come" if each < 0 else f"Serve, {each} models each", deploy, places)


def _get(url: str, path: str) -> Any:
    with urllib.request.urlopen(f"http://{url}{path}", timeout=15) as answer:
        return json.load(answer)


# --- measuring -------------------------------------------------------------------------------------------


def _measure(report: Report, models: ModelSet, contender: Contender, plan: Plan) -> None:
    models.forget_pages()
    report.progress(f"{contender.name}: a cluster of {_NODES} nodes")
    with running(_NODES, share_bytes=plan.share_bytes) as nodes, tempfile.TemporaryDirectory() as scratch:
        from ray import serve

        serve.run(contender.deploy(), name="models", route_prefix="/")
        if not wait_until(lambda: len(contender.places(nodes.url)) == _NODES, timeout_s=_START_S):
            report.require(False, f"{contender.name} did not come up with {_NODES} replicas")
            return
        with _clients(nodes.url, models, plan, Path(scratch)) as said:
            report.progress(f"{contender.name}: {plan.clients} clients")
            time.sleep(plan.warm_s)
            began = time.time()
            time.sleep(plan.seconds)
            middle, kills = time.time(), nodes.kills
            usage = {node.name: node.usage_bytes for node in nodes.nodes}
            places = _places(contender, nodes.url)
            victim = _victim(nodes, places)
            report.progress(f"{contender.name}: {victim.name} is killed")
            killed = time.time()
            nodes.kill(victim)
            time.sleep(plan.seconds)
            ended, after = time.time(), _places(contender, nodes.url)
        answers = said()
        holders = Counter(name for _, held in places for name in held)
        report.add(
            "cluster",
            contender=contender.name,
            models=len(models.cases),
            held=len(holders),
            copies=holders.total(),
            most_replicas=max(holders.values(), default=0),
            replicas_of_one=dict(sorted(Counter(holders.values()).items())),
            kills=kills,
            usage_bytes_by_node=usage,
            **answers.between(began, middle).figures(middle - began),
        )
        report.add(
            "killed",
            contender=contender.name,
            node=victim.name,
            held=len({name for _, held in after for name in held}),
            replicas=len(after),
            kills=None if nodes.kills is None or kills is None else nodes.kills - kills,
            **answers.between(killed, ended).figures(ended - killed),
        )


def _places(contender: Contender, url: str) -> list[tuple[int, list[str]]]:
    found: list[tuple[int, list[str]]] = []

    def look() -> bool:
        found[:] = contender.places(url)
        return True

    wait_until(look, timeout_s=30)
    return found


def _victim(nodes: Nodes, places: Sequence[tuple[int, list[str]]]) -> Node:
    """Returns the node with most models, the head left out."""
    held = {node.name: sum(len(models) for pid, models in places if node.has(pid)) for node in nodes.nodes[1:]}
    return max(nodes.nodes[1:], key=lambda node: held[node.name])


@contextlib.contextmanager
def _clients(url: str, models: ModelSet, plan: Plan, scratch: Path) -> Iterator[Callable[[], Answers]]:
    """Runs the clients while the scope lasts; what is yielded returns what they have seen, afterwards."""
    cases = scratch / "cases"
    cases.write_text("\n".join(map(str, models.folders)))
    files = [scratch / f"client-{number}" for number in range(plan.clients)]
    command = [sys.executable, "-m", "benchmarks.cluster.client", url, str(cases)]
    started = []
    try:
        for number, file in enumerate(files):
            with file.open("w") as out:
                arguments = [str(plan.seed + number), str(plan.exponent)]
                started.append(
                    subprocess.Popen([*command, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=out, text=True)
                )
        yield lambda: _read(files)
    finally:
        for process in started:
            assert process.stdin is not None
            process.stdin.close()
        for process in started:
            try:
                process.wait(90)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _read(files: Sequence[Path]) -> Answers:
    found = Answers()
    for file in files:
        for line in file.read_text().splitlines():
            at, model, outcome, took = line.split(" ")
            found.lines.append((float(at), model, outcome, float(took)))
    return found
