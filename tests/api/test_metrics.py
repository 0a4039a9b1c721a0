"""`/metrics` as a whole: what is declared, bounded, only growing; dashboard and rules ask for nothing else."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from kernel import ScriptedKernel
from prometheus_client.parser import text_string_to_metric_families
from served import MB, fake_host

from modelhost.api.access import Guard
from modelhost.api.families import FAMILIES
from modelhost.api.merging import merge_metrics
from modelhost.api.metrics import Metrics
from modelhost.api.model_metrics import used_last
from modelhost.config import AlertsSettings, MetricsSettings
from modelhost.errors import NeverFits
from modelhost.host import Host
from modelhost.pool import ModelKey, Timing
from modelhost.pool.statistics import ModelStatistics, Statistics
from modelhost.runtime.fake import FakeScript
from modelhost.security.ring import KeyRing

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
DASHBOARD = ROOT / "deploy" / "grafana" / "modelhost.json"
PROMETHEUS = ROOT / "deploy" / "prometheus"

BY_NAME = {family.name: family for family in FAMILIES}
BY_SAMPLE = {name: family for family in FAMILIES for name in family.sample_names}

#: What Prometheus itself adds.
ADDED_LABELS = {"job", "instance"}


@asynccontextmanager
async def page_of(directory: Path, names: str, **sections: Any) -> AsyncIterator[tuple[Host, Metrics]]:
    """An open host of fake models, one for each letter, and its page; nothing listens."""
    scripts = {name: FakeScript(resident_bytes=MB) for name in names}
    host = fake_host(directory, scripts | {"giant": FakeScript(resident_bytes=500 * MB)})
    host.settings = host.settings.model_copy(update=sections)
    async with host:
        yield host, Metrics(host, Guard(KeyRing(None)))


async def use(host: Host, *names: str) -> None:
    """Has each model loaded, and one request for it answered."""
    for name in names:
        async with host.pool.lease(name):
            pass
        timing = Timing(0)
        timing.queue_ns, timing.infer_ns = 3_000, 5_000
        statistics = host.pool.statistics
        statistics.note_success(statistics.of(ModelKey(name, "1")), timing, 10_000_000)


async def text_of(metrics: Metrics) -> str:
    return (await metrics.render()).decode()


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """The samples by name and label values, as they stand there: the library's reader renames counters."""
    list(text_string_to_metric_families(text))
    found = {}
    for line in text.splitlines():
        if not line.startswith("#"):
            name, labels, value = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)", line).groups()
            found[name, tuple(re.findall(r'\w+="([^"]*)"', labels or ""))] = float(value)
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a host with models, some of them mapped, with a kernel that says everything."""

    async def make() -> str:
        directory = tmp_path_factory.mktemp("models")
        alerts = AlertsSettings(webhook_url="http://127.0.0.1:1/")  # nothing is posted
        async with page_of(directory, "ab", alerts=alerts) as (host, metrics):
            host.memory.gauge.source = ScriptedKernel()
            await use(host, "a", "b", "a")
            with pytest.raises(NeverFits):
                await host.pool.acquire("giant")
            weights = directory / "weights"
            weights.write_bytes(b"x" * 5000)
            host.pool.mapped_files = lambda: {ModelKey("a", "1"): (weights,)}
            host.conditions.note("artifacts_unwritten", "the disk is full")
            metrics.alerts.start()
            metrics.traces, metrics.handed_over = lambda: (0, 0), lambda: 0
            return await text_of(metrics)

    return asyncio.run(make())


# --- the page ---------------------------------------------------------------------------------------------


def test_what_is_declared_is_there_and_nothing_else(whole: str) -> None:
    heads = re.findall(r"^# TYPE (\S+) (\w+)$", whole, re.MULTILINE)
    assert max(Counter(name for name, _ in heads).values()) == 1, "a family stands there once"
    assert dict(heads) == {family.name: family.kind for family in FAMILIES}
    with_samples = {name for name, _ in samples(whole)}
    assert with_samples == set(BY_SAMPLE)


def test_labels_are_those_that_are_declared(whole: str) -> None:
    for line in whole.splitlines():
        if line.startswith("#"):
            continue
        name, labels = re.match(r"(\w+)(?:\{(.*)\})? ", line).groups()
        found = re.findall(r'(\w+)="', labels or "")
        assert [label for label in found if label != "le"] == list(BY_SAMPLE[name].labels), line
        assert ("le" in found) == name.endswith("_bucket"), line


def test_pages_of_several_processes_are_one_page_without_a_sample_twice(whole: str) -> None:
    merged = merge_metrics([(0, whole), (1, whole)])
    heads = re.findall(r"^# TYPE (\S+) (\w+)$", merged, re.MULTILINE)
    assert heads == re.findall(r"^# TYPE (\S+) (\w+)$", whole, re.MULTILINE)
    lines = [line.rpartition(" ")[0] for line in merged.splitlines() if not line.startswith("#")]
    assert len(set(lines)) == len(lines)
    assert list(text_string_to_metric_families(merged))
    assert 'nv_inference_request_success{worker="1",model="a",version="1"}' in lines
    assert "modelhost_memory_usage_bytes" in lines


def test_texts_are_sentences_and_ours_have_names_as_prometheus_wants_them() -> None:
    for family in FAMILIES:
        assert family.text.endswith("."), family.name
        if family.name.startswith(("modelhost_", "process_")):
            assert (family.kind == "counter") == family.name.endswith("_total"), family.name


def test_the_table_in_the_documentation_is_this_one() -> None:
    text = (ROOT / "docs" / "metrics-and-alerts.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| (.*) \|$", text, re.MULTILINE)
    assert [(name, kind, labels, said) for name, kind, labels, said in rows if name in BY_NAME] == [
        (family.name, family.kind, ", ".join(f"`{label}`" for label in family.labels), family.text)
        for family in FAMILIES
    ]


async def test_each_model_has_what_triton_and_modelmesh_say_of_it(tmp_path: Path) -> None:
    async with page_of(tmp_path, "ab") as (host, metrics):
        await use(host, "a", "b", "a")
        await host.memory.attempt_cleanup(everything=True)
        host.pool.statistics.note_failure(ModelKey("a", "1"), 5, "REJECTED")
        found = samples(await text_of(metrics))
    a = ("a", "1")
    assert (found["nv_inference_request_success", a], found["nv_inference_count", a]) == (2, 2)
    assert found["nv_inference_request_duration_us", a] == 20_000
    assert (found["nv_inference_queue_duration_us", a], found["nv_inference_compute_infer_duration_us", a]) == (6, 10)
    reasons = {reason: found["nv_inference_request_failure", (*a, reason)] for reason in ("REJECTED", "BACKEND")}
    assert reasons == {"REJECTED": 1, "BACKEND": 0}
    assert found["nv_inference_pending_request_count", a] == 0
    assert ("nv_model_load_duration_secs", a) not in found, "it has left"
    assert (found["modelhost_model_loads_total", a], found["modelhost_model_evictions_total", a]) == (1, 1)
    assert (found["modelhost_model_cold_starts_total", a], found["modelhost_cold_starts_total", ()]) == (1, 2)
    assert found["modelmesh_age_at_eviction_milliseconds_count", ()] == 2
    assert found["modelmesh_cache_miss_milliseconds_count", ()] == found["modelmesh_loadmodel_milliseconds_count", ()]
    assert (found["modelmesh_instance_models_total", ()], found["modelmesh_models_managed_total", ()]) == (0, 3)
    assert found["nv_cpu_memory_total_bytes", ()] == found["modelhost_memory_limit_bytes", ()] == 256 * MB


async def test_models_without_samples_of_their_own_are_counted(tmp_path: Path) -> None:
    async with page_of(tmp_path, "abcde", metrics=MetricsSettings(max_models=2)) as (host, metrics):
        await use(host, *"abcde")
        await host.memory.attempt_cleanup(everything=True)
        await use(host, "b", "a")
        found = samples(await text_of(metrics))
        shown = {labels[0] for name, labels in found if name == "nv_inference_request_success"}
        assert shown == {"a", "b"}, "what is loaded comes first"
        assert found["modelhost_models_not_shown", ()] == 3
        assert found["modelhost_loads_total", ()] == 7
        host.settings = host.settings.model_copy(update={"metrics": MetricsSettings(max_models=0)})
        found = samples(await text_of(metrics))
        assert not [name for name, labels in found if name.startswith(("nv_inference", "modelhost_model_"))]
        assert found["modelhost_models_not_shown", ()] == 5


async def test_of_many_models_those_that_answered_last_are_found_in_turns() -> None:
    found = {ModelKey(str(number), "1"): number * 7919 % 2503 for number in range(2500)}
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    beside = asyncio.create_task(others())
    best = await used_last(list(found), found.__getitem__, 3)
    beside.cancel()
    assert best == sorted(found, key=lambda key: -found[key])[:3]
    assert turns >= 2
    assert await used_last([], found.__getitem__, 3) == []
    assert await used_last(list(found), found.__getitem__, 0) == []


def test_what_hosts_before_this_one_counted_is_no_part_of_its_counters() -> None:
    statistics, key = Statistics(), ModelKey("a", "1")
    restored = ModelStatistics()
    Statistics().note_success(restored, Timing(0), 1000)
    statistics.restore(key, restored)
    statistics.restore(ModelKey("nobody", "1"), ModelStatistics())
    assert statistics.since_start(key).success == 0
    assert statistics.asked() == []
    for _ in range(2):
        statistics.note_success(statistics.of(key), Timing(0), 500)
    assert statistics.since_start(key)[:4] == (2, 2, 0, 1000)
    assert statistics.get(key).success.count == 3
    assert statistics.asked() == [key]
    assert statistics.get(key).failures is None


# --- dashboard and rules -----------------------------------------------------------------------------------


def expressions() -> Iterator[tuple[str, str]]:
    """Every expression in `deploy/`, and where it stands."""
    dashboard = json.loads(DASHBOARD.read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            yield panel["title"], target["expr"]
    for annotation in dashboard["annotations"]["list"]:
        yield annotation["name"], annotation["expr"]
    for variable in dashboard["templating"]["list"]:
        if asked := re.fullmatch(r"label_values\((.*), (\w+)\)", variable.get("definition", "")):
            yield variable["name"], f"count by ({asked[2]}) ({asked[1]})"
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]:
        for rule in group["rules"]:
            yield rule["alert"], rule["expr"]


def parse(expression: str) -> tuple[list[promql_parser.VectorSelector], set[str]]:
    """The series that an expression asks for, and the labels that it groups and joins by."""
    selectors: list[promql_parser.VectorSelector] = []
    labels: set[str] = set()

    def visit(part: Any) -> None:
        if isinstance(part, promql_parser.VectorSelector):
            selectors.append(part)
        elif isinstance(part, promql_parser.AggregateExpr) and part.modifier is not None:
            labels.update(part.modifier.labels)
        elif isinstance(part, promql_parser.BinaryExpr) and part.modifier is not None and part.modifier.matching:
            labels.update(part.modifier.matching.labels)

    promql_parser.walk(promql_parser.parse(expression.replace("$__rate_interval", "1m")), visit)
    return selectors, labels


@pytest.mark.parametrize(("where", "expression"), list(expressions()))
def test_expressions_ask_for_what_there_is(where: str, expression: str, whole: str) -> None:
    selectors, grouped = parse(expression)
    there = {name for name, _ in samples(whole)}
    labels = set(ADDED_LABELS)
    for selector in selectors:
        if selector.name == "up":
            continue
        assert selector.name in there, f"{where}: {selector.name}"
        own = {*BY_SAMPLE[selector.name].labels, *ADDED_LABELS}
        if selector.name.endswith("_bucket"):
            own.add("le")
        assert {matcher.name for matcher in selector.matchers.matchers} <= own, f"{where}: {selector}"
        labels |= own
    assert grouped <= labels, f"{where}: {expression}"


def test_counters_are_asked_for_their_rate_and_gauges_are_not() -> None:
    for where, expression in expressions():
        for name in re.findall(r"(?:rate|increase)\((\w+)", expression):
            assert BY_SAMPLE[name].kind != "gauge", f"{where}: {name}"
        bare = re.sub(r"(?:rate|increase)\(\w+", "", expression)
        for name in re.findall(r"\w+", re.sub(r'"[^"]*"', "", bare)):
            is_counter = name in BY_SAMPLE and BY_SAMPLE[name].kind != "gauge"
            shown_as_total = name.startswith("modelhost_model_") or where in {"model"}
            assert not is_counter or shown_as_total, f"{where}: {name}"


def test_the_dashboard_is_one_that_grafana_can_lay_out() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert dashboard["uid"] == "modelhost"
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {
        "datasource",
        "job",
        "instance",
        "model",
    }
    assert len({panel["id"] for panel in panels}) == len(panels)
    places: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        covers = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24, panel["title"]
        assert not covers & places, f"{panel['title']} lies on another"
        places |= covers
        if panel["type"] == "row":
            continue
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        ids = [target["refId"] for target in panel["targets"]]
        assert ids, panel["title"]
        assert len(set(ids)) == len(ids), panel["title"]
        assert panel["fieldConfig"]["defaults"].get("unit") or panel["type"] == "table", panel["title"]


def test_rules_say_who_is_to_do_what() -> None:
    rules = [
        rule for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"] for rule in group["rules"]
    ]
    assert len({rule["alert"] for rule in rules}) == len(rules)
    for rule in rules:
        assert rule["labels"]["severity"] in {"info", "warning", "critical"}, rule["alert"]
        assert {"summary", "description"} == rule["annotations"].keys(), rule["alert"]
    fired = re.findall(r'alertname="(\w+)"', (PROMETHEUS / "alerts_test.yml").read_text())
    assert fired == [rule["alert"] for rule in rules], "each rule has a test"


# --- by Prometheus' own tool -------------------------------------------------------------------------------


def promtool(*arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian's package prometheus has it)")
    return subprocess.run([tool, *arguments], cwd=PROMETHEUS, input=text, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    "arguments",
    [("check", "config", "prometheus.yml"), ("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")],
)
def test_promtool_takes_the_files(arguments: tuple[str, ...]) -> None:
    ended = promtool(*arguments)
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_promtool_reads_the_page_and_finds_fault_only_with_names_that_are_not_ours(whole: str) -> None:
    ended = promtool("check", "metrics", text=whole)
    problems = [line for line in (ended.stdout + ended.stderr).splitlines() if line.strip()]
    assert ended.returncode in (0, 3), problems
    ours = [line for line in problems if not line.startswith(("nv_", "modelmesh_"))]
    assert ours == []
