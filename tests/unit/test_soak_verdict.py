"""How a soak is judged: drift that one odd reading cannot hide or fake, times, and what counts as lost."""

from __future__ import annotations

import json
import os
import random
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.smaps import read_process
from benchmarks.soak.forms import FORMS, outputs, request
from benchmarks.soak.models import Case, Question, agrees
from benchmarks.soak.record import OK, WRONG, Asked, Span, judged
from benchmarks.soak.spent import PARTS, Cores, Spent, taken_of
from benchmarks.soak.traffic import Served
from benchmarks.soak.verdict import Drift, FaultPace, Pace, Reading, drift, fault_paces, paces, violations
from benchmarks.soak.wire import Reply

_MB = 1 << 20


def readings(*committed: float) -> list[Reading]:
    return [Reading(60.0 * index, int(size), int(size)) for index, size in enumerate(committed)]


@pytest.mark.parametrize("seed", range(20))
def test_memory_that_sways_has_no_drift(seed: int) -> None:
    sway = random.Random(seed)
    found = drift(readings(*(60 * _MB + sway.uniform(-_MB, _MB) / 4 for _ in range(25))))
    assert abs(found.share) < 0.01
    assert found.is_known


def test_memory_that_grows_by_a_little_each_time_has_drifted_by_all_of_it() -> None:
    found = drift(readings(*(60 * _MB + 40_000 * index for index in range(26))))
    assert found.bytes == pytest.approx(800_000)
    assert found.share == pytest.approx(800_000 / (60 * _MB + 600_000), rel=1e-3)


@pytest.mark.parametrize("at", [0, 5, 8, 24])
def test_one_reading_that_is_off_changes_nothing(at: int) -> None:
    sizes = [60 * _MB] * 25
    sizes[at] += 30 * _MB
    assert drift(readings(*sizes)).bytes == 0


def test_the_first_fifth_is_told_apart_and_not_judged() -> None:
    seen = readings(*([60 * _MB] * 5 + [61 * _MB] * 20))
    found = drift(seen)
    assert (found.bytes, found.settling_bytes, found.readings) == (0, _MB, 20)
    assert drift(seen, settling_s=120).readings == 20
    assert drift(seen, settling_s=600).readings == 15


@pytest.mark.parametrize("at", range(9, 21))
def test_a_step_is_drift_wherever_it_is(at: int) -> None:
    assert drift(readings(*([60 * _MB] * at + [61 * _MB] * (25 - at)))).share > 0.01


@pytest.mark.parametrize("seed", range(5))
def test_a_leak_is_found_behind_a_beginning_and_under_noise(seed: int) -> None:
    sway = random.Random(seed)

    def seen(leak_bytes: int) -> list[Reading]:
        sizes = (62 * _MB + 2 * _MB * (1 - 0.5**index) + leak_bytes * index for index in range(41))
        return readings(*(size + sway.uniform(-1, 1) * (150 << 10) for size in sizes))

    assert drift(seen(0)).share < 0.01
    assert drift(seen(30_000)).share > 0.01


def test_a_leak_in_a_real_process_is_found() -> None:
    seen, kept = [], []
    for index in range(25):
        size = read_process("self").committed_bytes
        seen.append(Reading(60.0 * index, size, size))
        # A mapping of its own, whatever the heap has left, and large beside what other tests' leftovers give back.
        kept.append(bytes([1]) * max(4 << 20, size // 250))
    assert drift(seen).bytes > 0.8 * sum(len(one) for one in kept[5:24])
    assert drift(seen).share > 0.01


def test_few_readings_say_nothing() -> None:
    assert drift([]) == Drift(0, 0, 0)
    assert not drift(readings(1, 2, 3, 4)).is_known


def asked(model: str, *latencies_ms: float, outcome: str = OK) -> list[Asked]:
    return [Asked(0.0, model, latency / 1e3, 0.0, outcome) for latency in latencies_ms]


def test_paces_are_of_answers_alone_by_model_and_of_all() -> None:
    calm = asked("a", *[1.0] * 99, 5.0) + asked("b", *[10.0] * 100)
    rough = asked("a", *[2.0] * 98, 8.0, 8.0) + asked("b", *[10.0] * 100) + asked("a", 900, outcome="503 overloaded")
    by_model = {pace.model: pace for pace in paces(calm, rough)}
    assert by_model["a"] == Pace("a", 100, 1.0, 5.0, 2.0, 8.0)
    assert by_model["a"].slower == 1.6
    assert by_model["all"].answers == 200


def test_a_slow_answer_is_told_with_the_faults_that_went_on_meanwhile() -> None:
    calm = asked("a", *[1.0] * 100) + asked("b", *[10.0] * 100)
    rough = [
        Asked(1.0, "a", 0.0021, 0.0, OK),  # before
        Asked(9.9, "a", 0.2, 0.0, OK),  # sent before, answered in it
        Asked(11.1, "b", 0.019, 0.0, OK),  # after it, in what it left behind
        Asked(11.1, "b", 9.0, 0.0, "503 overloaded"),
        Asked(12.5, "a", 0.001, 0.0, OK),
    ]
    spans = [Span("swap", 10.0, 11.0), Span("garbage", 10.0, 10.5), Span("garbage", 12.0, 13.0)]
    assert fault_paces(calm, rough, spans) == [
        FaultPace("garbage", 2, 200.0, 200.0, 0.5),
        FaultPace("swap", 2, 200.0, 200.0, 0.5),
        FaultPace("(no fault)", 1, 2.1, 2.1, 1.0),
    ]


def broken(**changes: Any) -> list[str]:
    seen: dict[str, Any] = {
        "outcomes": {OK: 1000, "503 overloaded": 3, "left": 5},
        "oom_kills": 0,
        "is_alive": True,
        "unmet": (),
        "drift": Drift(0.009 * 60 * _MB, 0.009, 10),
        "paces": [Pace("a", 1000, 1, 10, 1, 20)],
        "is_short": False,
    }
    return list(violations(**seen | changes))


def test_a_soak_within_its_bounds_passes() -> None:
    assert broken() == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outcomes": {WRONG: 1}}, "1 answers were wrong"),
        ({"outcomes": {"lost": 1, "lost: 500 run_failed": 2}}, "3 requests were lost"),
        ({"oom_kills": 1}, "the kernel killed 1"),
        ({"is_alive": False}, "the host has ended"),
        ({"unmet": ["hot swap: no"]}, "hot swap: no"),
        ({"drift": Drift(_MB, 0.011, 10)}, "drifted by 1.10%"),
        ({"drift": Drift(0, 0, 4)}, "say nothing about drift"),
        ({"paces": [Pace("a", 1000, 1, 10, 1, 21)]}, "2.1 times the calm"),
        ({"paces": [Pace("a", 199, 1, 10, 1, 10)]}, "say nothing about a p99"),
    ],
)
def test_what_must_not_be_is_said(changes: dict[str, Any], words: str) -> None:
    (said,) = broken(**changes)
    assert words in said


def test_a_short_soak_is_not_judged_by_drift_and_times() -> None:
    assert broken(drift=Drift(_MB, 1, 2), paces=[Pace("a", 1, 1, 1, 9, 9)], is_short=True) == []


# --- answers -----------------------------------------------------------------------------------------


QUESTION = Question(
    {"x": np.array([[1.5]], np.float32)},
    ({"y": np.array([[2.0]], np.float32), "s": [{"a": 0.5}]}, {"y": np.array([[7.0]], np.float32), "s": [{"a": 0.25}]}),
)
CASE = Case("m", "dense", (QUESTION,), ())  # type: ignore[arg-type]


def reply(y: Any, s: Any, status: int = 200) -> Reply:
    entries = [
        {"name": "y", "datatype": "FP32", "shape": [1, 1], "data": y},
        {"name": "s", "datatype": "BYTES", "shape": [1], "data": s},
    ]
    return Reply(status, {}, json.dumps({"outputs": entries}).encode())


def test_an_answer_is_right_if_it_is_one_of_the_variants_that_may_answer() -> None:
    sent = request(CASE, QUESTION, "json")
    first, second, mixed = reply([2.0], ['{"a":0.5}']), reply([7.0], ['{"a":0.25}']), reply([2.0], ['{"a":0.25}'])
    assert judged(sent, first)[0] == OK
    assert judged(sent, second)[0] == WRONG
    assert judged(sent, second, (0, 1))[0] == OK
    assert judged(sent, mixed, (0, 1))[0] == WRONG
    assert judged(sent, reply([2.0], ['{"b":0.5}']))[0] == WRONG
    assert judged(sent, Reply(200, {}, b"{"))[0] == WRONG


def test_a_request_during_which_a_swap_begins_may_have_the_answer_of_either() -> None:
    served = Served()
    before = served.variants("m")
    served.allow("m", 0, 1)
    assert served.since("m", before) == (0, 1)
    served.allow("m", 1)
    assert served.since("m", before) == (0, 1)
    assert served.since("m", served.variants("m")) == (1,)


def test_a_documented_refusal_is_none_of_the_losses_and_all_else_is() -> None:
    sent = request(CASE, QUESTION, "json")
    assert judged(sent, Reply(503, {}, b'{"code":"overloaded"}')) == ("503 overloaded", "")
    for status, body in ((500, b'{"code":"run_failed"}'), (400, b'{"code":"invalid_request"}'), (503, b"gone")):
        outcome, text = judged(sent, Reply(status, {}, body))
        assert outcome.startswith("lost: ")
        assert "m (json)" in text


@pytest.mark.parametrize("form", FORMS)
def test_every_form_carries_the_question(form: str) -> None:
    assert b"/m" in request(CASE, QUESTION, form).data.partition(b"\r\n")[0]


def test_v1_answers_have_their_names() -> None:
    body = json.dumps({"outputs": {"y": [[2.0]], "s": [{"a": 0.5}]}}).encode()
    assert agrees(QUESTION.answers[0], outputs(Reply(200, {}, body), request(CASE, QUESTION, "v1")))


def stats(**models: tuple[int, int, int]) -> dict[str, Any]:
    """V2's statistics of models, by requests, what each took in all, and what each run took; milliseconds."""
    return {
        "model_stats": [
            {
                "name": name,
                "inference_stats": {
                    "success": {"count": count, "ns": count * took_ms * 1_000_000},
                    "compute_infer": {"count": count, "ns": count * run_ms * 1_000_000},
                    **{part: {"count": count, "ns": 0} for part in PARTS if part != "compute_infer"},
                },
            }
            for name, (count, took_ms, run_ms) in models.items()
        ]
    }


def test_where_time_went_is_told_by_parts_of_requests_and_by_cores() -> None:
    spent = Spent()
    before, between = (
        taken_of(stats(a=(10, 100, 50), other=(1, 1, 1)), ["a", "b"]),
        taken_of(stats(a=(10, 2, 1)), ["a"]),
    )
    later = taken_of(stats(a=(30, 2, 1), b=(4, 3, 2)), ["a", "b"])
    spent.add(Cores(0, 0, 0, 0, 0, 0), Cores(10, 5, 1, 2, 3, 1), before, before)
    spent.add(Cores(100, 5, 1, 2, 3, 9), Cores(110, 20, 1, 2, 8, 10), between, later)
    shares = {"host": 1.0, "children": 0.05, "waited": 0.1, "clients": 0.4, "others": 0.1}
    assert spent.cores() == {f"{name}_cores": share for name, share in shares.items()}
    parts = spent.parts("a")
    assert (parts["request_ms"], parts["compute_infer_ms"], parts["queue_ms"]) == (2.0, 1.0, 0.0)
    assert spent.parts("b")["request_ms"] == 3.0
    assert spent.parts("nobody asked")["request_ms"] == 0.0


def test_cores_are_read_of_processes_that_are_there_and_of_others() -> None:
    before = Cores.read(os.getpid(), [os.getpid()])
    deadline = time.thread_time() + 0.05
    while time.thread_time() < deadline:
        pass
    after = Cores.read(os.getpid(), [os.getpid(), 1 << 30])
    assert after.host - before.host >= 0.04 - 0.01  # its clock has ticks of 10 ms
    assert after.clients - before.clients >= 0.04
    assert after.waited >= before.waited >= 0
    assert Cores.read(1 << 30, []).host == 0
