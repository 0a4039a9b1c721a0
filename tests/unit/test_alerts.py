"""Which alerts there are, how often they are told, and how they are posted: without a network, without waiting."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from modelhost.alerts.alert import Alert
from modelhost.alerts.desk import Alerts
from modelhost.alerts.pacing import Pacing
from modelhost.alerts.sender import Sender
from modelhost.alerts.watch import Watch
from modelhost.alerts.webhook import Outcome, sign
from modelhost.config import AlertsSettings, MemorySettings, ModelsSettings, Settings, load_settings
from modelhost.errors import ConfigError, ModelBroken
from modelhost.host import Host
from modelhost.runtime.fake import FakeMemory, FakeRuntime, FakeScript
from modelhost.security.secret import read_secret, take_secret

MB = 1 << 20


def alert(subject: str = "overloaded", at: float = 1.0, **more: object) -> Alert:
    return Alert("refusals", subject, "warning", "happened", "requests are refused", at, **more)  # type: ignore[arg-type]


# --- how often ----------------------------------------------------------------------------------------------


def test_a_stream_of_one_kind_is_told_at_once_and_then_as_one_with_a_count() -> None:
    pacing = Pacing(60)
    first = alert(at=100.0)
    assert pacing.offer(first, 0) is first
    for number in range(1, 50):
        assert pacing.offer(alert(at=100.0 + number, count=2, models=(f"m{number}",)), number) is None
    assert pacing.due(59.9) == []
    (told,) = pacing.due(60)
    assert (told.count, told.first_at, told.at) == (98, 101.0, 149.0)
    assert (len(told.models), told.models[-1]) == (20, "m49")
    assert pacing.due(200) == []


def test_others_are_told_beside_it_and_each_has_its_own_time() -> None:
    pacing = Pacing(60)
    assert pacing.offer(alert("overloaded"), 0) is not None
    assert pacing.offer(alert("timeout"), 10) is not None
    assert pacing.offer(alert("overloaded", at=3.0), 20) is None
    assert pacing.offer(alert("timeout", at=2.0), 20) is None
    assert [held.subject for held in pacing.due(65)] == ["overloaded"]
    assert [held.subject for held in pacing.due(70)] == ["timeout"]
    assert pacing.offer(alert("overloaded"), 130) is not None


def test_what_is_held_comes_in_the_order_in_which_it_happened_and_is_there_at_the_end() -> None:
    pacing = Pacing(60)
    for subject in ("a", "b"):
        pacing.offer(alert(subject), 0)
    pacing.offer(alert("b", at=5.0), 1)
    pacing.offer(alert("a", at=6.0), 2)
    assert [held.subject for held in pacing.rest()] == ["b", "a"]
    assert pacing.rest() == []


def test_without_an_interval_all_are_told() -> None:
    pacing = Pacing(0)
    assert all(pacing.offer(alert(), 0) is not None for _ in range(3))


# --- what there is to tell ----------------------------------------------------------------------------------


def host_of(directory: Path, **alerts: object) -> Host:
    for name in ("a", "broken"):
        file = directory / name / "1" / "model.onnx"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    memory = FakeMemory()
    settings = Settings(
        models=ModelsSettings(directory=directory),
        memory=MemorySettings(sample_interval_s=0.5),
        alerts=AlertsSettings(**alerts),
    )
    scripts = {"a": FakeScript(), "broken": FakeScript(load_error=RuntimeError("no such operator in /srv/x.onnx"))}
    return Host(settings, runtime_factory=lambda settings, budgets: FakeRuntime(memory, scripts), probe=memory)


@pytest.mark.anyio
async def test_levels_are_told_with_their_figures_and_when_they_end(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        watch = Watch(host, dict)
        assert list(watch.look()) == []
        memory = host.memory.probe
        assert isinstance(memory, FakeMemory)
        memory.other_bytes = 150 * MB
        host.memory.memory_info()
        (begun,) = watch.look()
        assert (begun.topic, begun.severity, begun.state) == (("memory_level", "critical"), "critical", "begun")
        assert begun.text == "memory is critical, it was normal: 210.0 MB of 256.0 MB (request)"
        assert begun.details == {"from": "normal", "level": "critical", "usage_bytes": 210 * MB, "cause": "request"}
        memory.other_bytes = 115 * MB
        host.memory.memory_info()
        memory.other_bytes = 0
        host.memory.memory_info()
        warning, normal = watch.look()
        assert (warning.subject, warning.severity, warning.state) == ("warning", "info", "ended")
        assert (normal.subject, normal.severity, normal.state) == ("normal", "info", "ended")
        assert list(watch.look()) == []


@pytest.mark.anyio
async def test_of_several_processes_one_tells_what_all_of_them_see(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with host_of(tmp_path) as host:
        watch = Watch(host, dict)
        monkeypatch.setattr(host.siblings, "number", 1)
        memory = host.memory.probe
        assert isinstance(memory, FakeMemory)
        memory.other_bytes = 150 * MB
        host.memory.memory_info()
        for name in ("memory_critical", "memory_grows", "descriptors_used_up"):
            host.conditions.note(name, "it holds")
        assert [found.subject for found in watch.look()] == ["descriptors_used_up"]


@pytest.mark.anyio
async def test_memory_that_does_not_come_back_thrashing_and_crashes_are_told(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        watch = Watch(host, dict)
        record = host.memory.record
        record("shortfall", cause="load of b:1", details={"shortfall_bytes": 5 * MB, "victims": ["a:1", "c:1"]})
        record("recovery", cause="load of b:1", details={})
        record("thrashing", cause="page cache", details={"refaulted_bytes_per_s": 1})
        record("thrashing_over", cause="page cache", details={"lasted_s": 3})
        record("worker_crash", cause="a:1", details={"reason": "signal 11", "in_a_row": 1, "restart_in_s": 0})
        shortfall, thrashing, over, crash = watch.look()
        assert shortfall.text == "5.0 MB did not come back after 2 models left (load of b:1)"
        assert shortfall.models == ("a:1", "c:1")
        assert (thrashing.state, over.state, over.severity) == ("begun", "ended", "info")
        assert (crash.kind, crash.models) == ("worker_crashed", ("a:1",))
        assert crash.text == "the worker process of a:1 has ended: signal 11"


@pytest.mark.anyio
async def test_conditions_are_told_when_they_begin_and_end_and_growth_by_its_own_kind(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        watch = Watch(host, dict)
        host.conditions.note("artifacts_unwritten", "/srv/cache/models is full")
        host.conditions.note("memory_grows", "it grows")
        begun = {found.kind: found for found in watch.look()}
        assert begun["condition"].topic == ("condition", "artifacts_unwritten")
        assert begun["condition"].text == "artifacts_unwritten: models is full"
        assert (begun["growth"].text, begun["growth"].state) == ("it grows", "begun")
        host.conditions.note("memory_critical", "nothing can leave")
        assert [found.severity for found in watch.look()] == ["critical"]
        host.conditions.clear("memory_critical")
        assert [found.severity for found in watch.look()] == ["info"]
        host.conditions.note("memory_grows", "it grows faster")
        assert list(watch.look()) == []
        host.conditions.clear("artifacts_unwritten")
        (ended,) = watch.look()
        assert (ended.state, ended.severity) == ("ended", "info")
        assert ended.text.startswith("artifacts_unwritten: it is over, after ")


@pytest.mark.anyio
async def test_refusals_are_told_by_code_and_wrong_requests_are_not(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        outcomes = {"overloaded": 3}
        watch = Watch(host, lambda: outcomes)
        assert list(watch.look()) == []
        outcomes.update(overloaded=8, invalid_request=100, model_not_found=1, client_gone=2, never_fits=1)
        told = {found.subject: found.count for found in watch.look()}
        assert told == {"overloaded": 5, "never_fits": 1}
        assert list(watch.look()) == []


@pytest.mark.anyio
async def test_loads_that_fail_are_told_with_their_models(tmp_path: Path) -> None:
    async with host_of(tmp_path) as host:
        watch = Watch(host, dict)
        with pytest.raises(ModelBroken):
            await host.pool.acquire("broken")
        (failed,) = watch.look()
        assert (failed.kind, failed.models, failed.count) == ("load_failed", ("broken:1",), 1)
        assert failed.text.endswith("no such operator in x.onnx")


@pytest.mark.anyio
async def test_only_the_kinds_that_are_wanted_are_counted_told_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: dict[str, int] = {}
    now = [0.0]
    async with host_of(tmp_path, kinds=("refusals",), min_interval="10s") as host:
        alerts = Alerts(host, lambda: outcomes, clock=lambda: now[0])
        alerts.start()
        host.conditions.note("artifacts_unwritten", "full")
        for number in (1, 5, 9):
            outcomes["overloaded"] = number
            alerts.look()
        assert alerts.happened == {"refusals": 9}
        now[0] = 10.0
        with caplog.at_level(logging.WARNING, "modelhost"):
            alerts.look()
        lines = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
        assert lines[-1] == "requests are refused: overloaded (8 times)"
        await alerts.stop()
        alerts.look()


# --- posting ------------------------------------------------------------------------------------------------


class Poster:
    """Answers as it was told to, and then well; `may_answer` holds it."""

    shown = "https://hooks.test"

    def __init__(self, *outcomes: Outcome) -> None:
        self.outcomes = list(outcomes)
        self.bodies: list[bytes] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Event()

    def post(self, body: bytes) -> Outcome:
        self.bodies.append(body)
        self.asked.set()
        assert self.may_answer.wait(10)
        return self.outcomes.pop(0) if self.outcomes else Outcome(True)


AGAIN = Outcome(False, may_try_again=True, error="it answered 503")


class Posting:
    """A sender whose pauses are written down and take no time."""

    def __init__(self, poster: Poster, *, max_waiting: int = 10, retries: int = 3) -> None:
        self.pauses: list[float] = []
        self.now = 0.0
        self.ended = threading.Event()
        self.sender = Sender(
            lambda: poster,
            max_waiting=max_waiting,
            retries=retries,
            jitter=lambda: 1.0,
            clock=lambda: self.now,
            wait=self._wait,
        )

    def _wait(self, closing: threading.Event, pause_s: float) -> bool:
        self.pauses.append(pause_s)
        return closing.is_set()

    def end(self, patience_s: float = 5.0) -> Sender:
        self.sender.close(patience_s, self.ended.set)
        assert self.ended.wait(10)
        return self.sender


def test_bodies_are_posted_in_order_and_no_thread_begins_without_one() -> None:
    poster = Poster()
    posting = Posting(poster)
    assert posting.sender._thread is None
    for number in range(3):
        posting.sender.put(b"%d" % number)
    sender = posting.end()
    assert poster.bodies == [b"0", b"1", b"2"]
    assert (sender.sent, sender.retried, sender.waiting, dict(sender.dropped)) == (3, 0, 0, {"shutdown": 0})


def test_what_fails_is_tried_again_with_growing_waits(caplog: pytest.LogCaptureFixture) -> None:
    poster = Poster(AGAIN, AGAIN, Outcome(False, may_try_again=True, error="it answered 429", retry_after_s=30))
    posting = Posting(poster)
    with caplog.at_level(logging.INFO, "modelhost"):
        posting.sender.put(b"body")
        sender = posting.end()
    assert poster.bodies == [b"body"] * 4
    assert posting.pauses == [1, 2, 30]
    assert (sender.sent, sender.retried, sum(sender.dropped.values())) == (1, 3, 0)
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "alerts do not reach https://hooks.test: it answered 503; they are tried again",
        "alerts reach https://hooks.test again",
    ]


def test_what_never_gets_through_and_what_is_not_wanted_is_dropped_and_counted() -> None:
    refused = Outcome(False, error="it answered 400")
    poster = Poster(*[AGAIN] * 4, refused)
    posting = Posting(poster)
    for body in (b"a", b"b", b"c"):
        posting.sender.put(body)
    sender = posting.end()
    assert poster.bodies == [b"a"] * 4 + [b"b", b"c"]
    assert (sender.sent, dict(sender.dropped)) == (1, {"unreachable": 1, "refused": 1, "shutdown": 0})


def test_where_too_many_wait_the_oldest_makes_room() -> None:
    poster = Poster()
    poster.may_answer.clear()
    posting = Posting(poster, max_waiting=2)
    posting.sender.put(b"under way")
    assert poster.asked.wait(10)
    for body in (b"1", b"2", b"3", b"4"):
        posting.sender.put(body)
    assert posting.sender.waiting == 2
    poster.may_answer.set()
    sender = posting.end()
    assert poster.bodies == [b"under way", b"3", b"4"]
    assert sender.dropped["queue_full"] == 2


def test_at_the_end_what_waits_has_its_time_and_no_more() -> None:
    poster = Poster(AGAIN)
    poster.may_answer.clear()
    posting = Posting(poster)
    posting.sender.put(b"under way")
    assert poster.asked.wait(10)
    posting.sender.put(b"waits")
    posting.sender.close(5.0, posting.ended.set)
    posting.now = 5.0
    poster.may_answer.set()
    assert posting.ended.wait(10)
    posting.sender.put(b"too late")
    assert poster.bodies == [b"under way"]
    assert posting.sender.dropped["shutdown"] == 3


def test_one_that_never_began_ends_at_once() -> None:
    assert Posting(Poster()).end().sent == 0


def test_a_sender_that_cannot_be_made_is_logged_and_drops_what_waits(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Poster:
        raise OSError("no certificates")

    ended = threading.Event()
    sender = Sender(broken, max_waiting=5, retries=0)
    sender.put(b"a")
    assert sender._thread is not None
    sender._thread.join(10)
    sender.close(1.0, ended.set)
    assert sender.dropped["shutdown"] == 1
    assert "alerts are no longer posted" in caplog.text


# --- settings and secrets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["ftp://user:pw-1234@host/x", "https://", "hooks.test/x", "https://host:99999/pw-1234", "https://h/pw-1234 x"],
)
def test_a_wrong_url_is_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ={"MODELHOST_ALERTS_WEBHOOK_URL": url})
    assert "MODELHOST_ALERTS_WEBHOOK_URL" in str(caught.value)
    assert "pw-1234" not in str(caught.value)
    assert "host" not in str(caught.value).replace("HOST", "").replace("modelhost", "")


def test_the_url_is_not_in_what_settings_look_like() -> None:
    settings = load_settings(environ={"MODELHOST_ALERTS_WEBHOOK_URL": "https://user:pw-1234@host/x"})
    assert "pw-1234" not in repr(settings)
    assert settings.alerts.webhook_url == "https://user:pw-1234@host/x"


def test_a_secret_is_taken_out_of_the_environment_or_read_from_a_file(tmp_path: Path) -> None:
    environ = {"MODELHOST_ALERTS_SECRET": "sixteen or more bytes"}
    assert take_secret(environ) == b"sixteen or more bytes"
    assert (environ, take_secret(environ)) == ({}, None)
    file = tmp_path / "secret"
    file.write_text("sixteen or more bytes\n")
    file.chmod(0o600)
    assert read_secret(file) == b"sixteen or more bytes"
    assert load_settings(environ={"MODELHOST_ALERTS_SECRET": "x"}).alerts.secret_file is None


@pytest.mark.parametrize("make", [lambda file: None, lambda file: file.write_text("short"), lambda file: file.mkdir()])
def test_a_secret_that_is_none_keeps_the_start_from_happening(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"secret|bytes"):
        read_secret(tmp_path / "secret")


def test_the_signature_is_that_of_the_documentation() -> None:
    # printf '{}' | openssl dgst -sha256 -hmac 'sixteen or more bytes'
    assert sign(b"{}", b"sixteen or more bytes") == (
        "sha256=" + "5ad7cf0fe7fcdbc8b1497e87145b9a774eae4386a9cbb5c7ceebb41ab9fe19f5"
    )
