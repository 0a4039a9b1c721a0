"""The pages at `/` and `/docs` in a browser: figures, what can be done, others' words, keyboard, contrast, keys."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import models_for_tests as build
import numpy as np
import pytest
from accessibility import CONTRAST, LABELS
from browser import Browser, browser, missing
from host_process import running_host
from onnx import TensorProto
from served import MODELS, Served, fake_host, serve, settings
from sizes import FULL

from modelhost.host import Host
from modelhost.monitor import recorder
from modelhost.runtime.fake import FakeMemory, FakeScript
from modelhost.security.keys import new_key
from modelhost.tensors import to_bfloat16
from modelhost.units import format_bytes, format_duration, format_span

pytestmark = [
    pytest.mark.late,
    pytest.mark.skipif(bool(missing()), reason=f"not installed: {missing()} (apt-get install chromium-driver)"),
]

TAB, ENTER, ESCAPE, DOWN = "\ue004", "\ue007", "\ue00c", "\ue015"

#: Names that a page which makes markup of them would run, or lose. The last one is of a model that works.
HOSTILE = ("<img src=x onerror=document.title='run'>", '"><svg onload=alert(1)>', "__proto__", "a b%20c & d")
KINDS = HOSTILE[-1]


ROLES = ("infer", "observe", "manage")


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as tab:
        yield tab


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """Shipped models, one of numbers that JSON cannot carry, and broken ones; history has samples soon."""
    directory = tmp_path_factory.mktemp("models")
    for name in ("digits", "iris_petals"):
        shutil.copytree(MODELS / name, directory / name)
    for name in HOSTILE[:-1]:
        (directory / name / "1").mkdir(parents=True)
        (directory / name / "1" / "model.onnx").write_bytes(b"<script>document.title = 'run'</script>")
    kinds = (TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BFLOAT16)
    build.save(build.identities(kinds, ["n"]), directory, KINDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder, "EVERY_S", 0.2)
        with serve(Host(settings(directory, memory={"limit": 1 << 30}))) as served:
            yield served


@pytest.fixture(scope="module")
def opened(tab: Browser, host: Served) -> Browser:
    """The page of the host, once for all tests of this module."""
    tab.log("performance")
    tab.open(host.url)
    tab.until(lambda: "MB" in tab.text("#legend"), "figures")
    return tab


_AS_OPENED = """
document.querySelectorAll("dialog[open]").forEach((one) => one.close());
document.querySelector("#search").value = "";
document.querySelector("#search").dispatchEvent(new Event("input"));
document.activeElement.blur()"""


@pytest.fixture
def page(opened: Browser, host: Served) -> Iterator[Browser]:
    """The same with nothing open over it; afterwards nothing of it may have failed or gone elsewhere."""
    opened.run(_AS_OPENED)
    yield opened
    assert said(opened) == []
    assert [one for one in asked(opened) if not one.startswith((host.url + "/", "data:", "about:", "chrome:"))] == []


def said(tab: Browser) -> list[str]:
    """What stands in the console, what the Content-Security-Policy has refused among it; but for the host's errors."""
    found = tab.log("browser")
    return [one["message"] for one in found if one["source"] != "network" or "/ui/" in one["message"]]


def asked(tab: Browser) -> list[str]:
    """What the browser has asked for, of anybody."""
    found = [json.loads(one["message"])["message"] for one in tab.log("performance")]
    return [one["params"]["request"]["url"] for one in found if one["method"] == "Network.requestWillBeSent"]


def memory(host: Served) -> dict[str, Any]:
    found: dict[str, Any] = host.get("/memory").json()
    return found


def post(host: Served, path: str) -> None:
    assert host.post(path).status_code == 200


def row(name: str) -> str:
    """The words of a model's row, by its name as people read it."""
    return (
        "return [...document.querySelectorAll('#models-body tr')]"
        f".find((row) => row.querySelector('.name').textContent === {json.dumps(name)})?.textContent ?? ''"
    )


def press_button(tab: Browser, name: str, action: str) -> None:
    """Clicks a button of a model's row, once that is there."""
    tab.until(lambda: tab.run(row(name)), name)
    tab.run(
        "const row = [...document.querySelectorAll('#models-body tr')]"
        ".find((row) => row.querySelector('.name').textContent === arguments[0]);"
        "[...row.querySelectorAll('button')].find((one) => one.textContent.startsWith(arguments[1])).click()",
        name,
        action,
    )


def open_panel(tab: Browser, name: str) -> None:
    press_button(tab, name, name)
    tab.until(lambda: tab.text("#panel-body .infer, #panel-body .problem"), "the panel")


# --- figures -----------------------------------------------------------------------------------------


def test_figures_are_those_of_memory_in_the_same_words(page: Browser, host: Served) -> None:
    found = memory(host)
    marks = page.text("#bar")
    for name in ("baseline", "warning", "critical", "limit"):
        assert f"{name} {format_bytes(found[f'{name}_bytes'])}" in marks
    assert f"of {format_bytes(found['limit_bytes'])} ({found['limit_source']}) in use" in page.text("#memory-sentence")
    shown = float(page.text("#memory-sentence").split(" ")[0])
    assert shown == pytest.approx(found["usage_bytes"] / 2**20, abs=4)
    assert (page.text("#readiness"), page.text("#level")) == ("ready", f"memory {found['level']}")
    assert "live" in page.text("#connection")


def test_units_are_written_as_the_host_writes_them(page: Browser) -> None:
    sizes = [0, 1, 1023, 52_429, 2**20 - 1, 2**20, 1.5 * 2**20, 268_435_456, 3e12, -5e6]
    times = [0, 1e-7, 0.00052, 0.0524, 0.9994, 0.9996, 1.5, 99.96, 999.4, 1234.6]
    spans = [0, 40, 119, 120, 725, 7199, 7200, 12_600, 172_800, 700_000]
    script = """
        const [sizes, times, spans, done] = arguments;
        import("/ui/units.js").then(({ formatBytes, formatDuration, formatSpan }) =>
          done([sizes.map(formatBytes), times.map(formatDuration), spans.map(formatSpan)]))"""
    shown = page.do("/execute/async", {"script": script, "args": [sizes, times, spans]})
    assert shown == [[format_bytes(one) for one in sizes], [*map(format_duration, times)], [*map(format_span, spans)]]


def test_numbers_of_16_bits_are_the_hosts(page: Browser) -> None:
    steps = np.linspace(0.9, 1.1, 40)
    found = [0, -0.0, 1, -2.5, 65504, 65519, 65520, 1e9, 2**-14, 2**-24, 2**-25, 2**-26, 3e-8, 0.1, 1 / 3]
    numbers = [*found, *steps, *(steps * 2.0**-14), *(-steps * 2.0**-20), *(steps * 1e20)]
    script = """
        const [numbers, done] = arguments;
        import("/ui/halves.js").then(({ toBytes, fromBytes }) => done(["FP16", "BF16"].map((datatype) => {
          const bytes = toBytes(datatype, numbers);
          return [[...bytes], fromBytes(datatype, bytes).map((number) => [number, Object.is(number, -0)])];
        })))"""
    (half, halves), (brain, _) = page.do("/execute/async", {"script": script, "args": [numbers]})
    with np.errstate(over="ignore"):
        expected = np.array(numbers, np.float32).astype(np.float16)
    assert bytes(half) == expected.tobytes()
    assert bytes(brain) == to_bfloat16(numbers).tobytes()
    finite = np.isfinite(expected)
    assert [one for (one, _), keep in zip(halves, finite, strict=True) if keep] == expected[finite].tolist()


def test_a_load_elsewhere_is_seen_without_being_asked_for(page: Browser, host: Served) -> None:
    assert "not loaded" in page.run(row("digits"))
    post(host, "/v2/repository/models/digits/load")
    page.until(lambda: "1 loaded" in page.text("#models-count"), "the count")
    assert "not loaded" not in page.run(row("digits"))
    post(host, "/v2/repository/models/digits/unload")
    page.until(lambda: "digits:1 left" in page.text("#events-list"), "the event")


def test_history_is_drawn_and_read_out_by_its_slider(page: Browser) -> None:
    page.until(lambda: page.run("return document.querySelector('#moment').max > 0"), "two samples")
    assert page.run("return document.querySelectorAll('#plots polyline').length") >= 3
    page.run("document.querySelector('#moment').focus()")
    page.press("\ue012")  # left
    assert "MB in use" in page.run("return document.querySelector('#moment').getAttribute('aria-valuetext')")
    assert page.run("const { value, max } = document.querySelector('#moment'); return Number(value) < Number(max)")


# --- what can be done --------------------------------------------------------------------------------


def test_buttons_load_pin_unload_and_clean_up(page: Browser, host: Served) -> None:
    def loaded() -> dict[str, bool]:
        return {model["name"]: model["pinned"] for model in memory(host)["models"]}

    press_button(page, "digits", "Load")
    page.until(lambda: "digits is loaded" in page.text("#notice"), "what came of the load")
    press_button(page, "digits", "Pin")
    page.until(lambda: "digits is pinned" in page.text("#notice"), "what came of the pin")
    post(host, f"/v2/repository/models/{quote(KINDS)}/load")
    page.click("#cleanup")
    page.until(lambda: "They leave now" in page.text("#cleanup-dialog"), "the question")
    page.click("#cleanup-do")
    page.until(lambda: "came back" in page.text("#notice"), "what came of the clean-up")
    assert loaded() == {"digits": True}
    press_button(page, "digits", "Pin")
    page.until(lambda: "not pinned" in page.text("#notice"), "what came of the pin's end")
    press_button(page, "digits", "Unload")
    page.until(lambda: "digits is unloaded" in page.text("#notice"), "what came of the unload")
    assert loaded() == {}


def test_the_form_sends_what_it_shows_and_shows_the_answer(page: Browser, host: Served) -> None:
    open_panel(page, "digits")
    sent = json.loads(page.run("return document.querySelector('.infer textarea').value"))
    assert len(sent) == 64
    page.click(".infer button.main")
    page.until(lambda: page.text(".infer .status").startswith("200 OK"), "the answer")
    shown = json.loads(page.text(".infer pre[aria-label=Answer]"))
    body = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": sent}]}
    expected = host.infer("digits", body).json()
    assert shown["outputs"] == expected["outputs"]
    line = page.text(".infer .copied pre")
    assert line.startswith(f"curl -s '{host.url}/v2/models/digits/infer' -d '")
    assert json.loads(line.split(" -d ")[1].strip("'")) == body


def test_the_form_sends_and_shows_what_json_cannot_carry(page: Browser) -> None:
    open_panel(page, KINDS)
    for index, values in enumerate(("[0.1]", "[9007199254740993]", "[-3]")):
        page.fill(f".infer fieldset:nth-of-type({index + 1}) textarea", values)
    page.click(".infer button.main")
    page.until(lambda: page.text(".infer .status"), "the answer")
    page.until(lambda: page.text(".infer .status").startswith("200 OK"), "the answer")
    data = [one["data"] for one in json.loads(page.text(".infer pre[aria-label=Answer]"))["outputs"]]
    assert data == [[float(np.float16(0.1))], [9007199254740993], [-3]]
    assert "--data-binary @request.bin" in page.text(".infer .copied pre")


def test_the_form_says_what_is_wrong_here_and_what_the_host_finds_wrong(page: Browser) -> None:
    open_panel(page, "digits")
    page.fill(".infer textarea", "[1, 2")
    page.click(".infer button.main")
    assert "this is not JSON" in page.text(".infer fieldset .problem")
    assert page.run("return document.activeElement === document.querySelector('.infer textarea')")
    page.fill(".infer textarea", "[1, 2]")
    page.click(".infer button.main")
    page.until(lambda: page.text(".infer .status").startswith("400"), "the refusal")
    assert json.loads(page.text(".infer pre[aria-label=Answer]"))["code"] == "invalid_tensor"


def test_what_nobody_looks_at_is_not_made(page: Browser, host: Served) -> None:
    def viewers() -> int:
        return host.on_loop(lambda: len(host.app.feed.viewers))

    assert viewers() == 1
    page.click("#pause")
    assert "paused" in page.text("#connection")
    page.until(lambda: viewers() == 0, "the host knows that nobody looks")
    page.click("#pause")
    page.until(lambda: "live" in page.text("#connection"), "it goes on")
    assert viewers() == 1


# --- other people's words ----------------------------------------------------------------------------


def test_names_and_errors_are_words_and_nothing_else(page: Browser) -> None:
    for name in HOSTILE:
        assert name in page.run(row(name))
    open_panel(page, HOSTILE[0])
    assert HOSTILE[0] in page.text("#panel-title")
    page.press(ESCAPE)
    press_button(page, HOSTILE[0], "Load")
    page.until(lambda: "failure" in page.run("return document.querySelector('#notice').className"), "the error")
    page.click("#notice-close")
    assert page.run("return document.title") == "modelhost"
    assert page.run("return document.querySelectorAll('img, main script, [onload], [onerror]').length") == 0


# --- for everybody -----------------------------------------------------------------------------------


def test_everything_can_be_done_by_keyboard(page: Browser) -> None:
    first = "document.querySelectorAll('a, button, input, [tabindex]')[0]"
    page.run(f"{first}.focus()")
    assert page.run(f"return {first}.className === 'skip' && {first}.getBoundingClientRect().top >= 0")
    page.press(ENTER, TAB)
    page.until(lambda: page.run("return document.activeElement.id") == "search", "past the rest, to the search")
    page.press(*"digi")
    page.until(lambda: page.run("return document.querySelectorAll('#models-body tr').length") == 1, "one model")
    for _ in range(30):
        page.press(TAB)
        if page.run("return document.activeElement.className") == "name":
            break
    page.press(ENTER)
    page.until(lambda: page.run("return document.querySelector('#panel').open"), "the panel")
    page.press(ESCAPE)
    page.until(lambda: not page.run("return document.querySelector('#panel').open"), "it is closed")
    assert page.run("return document.activeElement.textContent") == "digits"
    page.press(TAB)
    assert page.run("return document.activeElement.matches(':focus-visible')")


def test_everything_has_a_name_and_words_can_be_read(page: Browser) -> None:
    open_panel(page, "iris_petals")
    assert page.run(LABELS) == []
    try:
        for scheme in ("light", "dark"):
            feature = {"name": "prefers-color-scheme", "value": scheme}
            page.devtools("Emulation.setEmulatedMedia", features=[feature])
            assert page.run(CONTRAST) == [], scheme
    finally:
        page.devtools("Emulation.setEmulatedMedia", features=[])


@pytest.mark.parametrize("width", [320, 390, 820])
def test_it_fits_small_screens(page: Browser, width: int) -> None:
    try:
        page.devtools("Emulation.setDeviceMetricsOverride", width=width, height=844, deviceScaleFactor=1, mobile=True)
        page.until(lambda: page.run("return innerWidth") == width, f"{width} pixels")
        assert page.run("return document.documentElement.scrollWidth") == width
        open_panel(page, "digits")
        assert page.run("return document.querySelector('#panel').scrollWidth") <= width
    finally:
        page.devtools("Emulation.clearDeviceMetricsOverride")


# --- what changes ------------------------------------------------------------------------------------


def test_levels_and_conditions_are_told_and_read_out(tab: Browser, tmp_path: Path) -> None:
    machine = FakeMemory()
    with serve(fake_host(tmp_path, {"plain": FakeScript()}, machine=machine)) as host:
        tab.open(host.url)
        tab.until(lambda: tab.text("#level") == "memory normal", "figures")
        for level, other_bytes in (("warning", 115 << 20), ("critical", 145 << 20), ("normal", 0)):
            machine.other_bytes = other_bytes
            tab.until(lambda level=level: tab.text("#level") == f"memory {level}", level)
            tab.until(lambda level=level: f"Memory is {level}" in tab.text("#announcement"), f"{level}, aloud")
            assert (tab.run("return document.title") == "modelhost") == (level == "normal")
        tab.until(lambda: "level warning → critical" in tab.text("#events-list"), "the events")
        host.on_loop(lambda: host.host.conditions.note("disk_full", "<b>no room</b> for artifacts"))
        tab.until(lambda: "disk full" in tab.text("#conditions"), "the condition")
        assert "<b>no room</b> for artifacts" in tab.text("#conditions")
        host.on_loop(lambda: host.host.conditions.clear("disk_full"))
        tab.until(lambda: tab.run("return document.querySelector('#conditions').hidden"), "its end")


@pytest.mark.full
@pytest.mark.skipif(not FULL, reason="two hosts, one after the other; MODELHOST_TEST_FULL=1 runs it")
def test_another_process_on_the_same_address_is_taken_for_what_it_is(tab: Browser, tmp_path: Path) -> None:
    with running_host(tmp_path, MODELS, "--memory-limit", "400MB") as first:
        tab.open(first.url)
        tab.until(lambda: "live" in tab.text("#connection"), "figures")
        for call in ("load", "unload"):
            httpx.post(f"{first.url}/v2/repository/models/digits/{call}", timeout=60)
        tab.until(lambda: "digits:1 left" in tab.text("#events-list"), "an event")
    tab.until(lambda: "No figures come" in tab.text("#banner-text"), "it has gone")
    port = first.url.rsplit(":", 1)[1]
    with running_host(tmp_path, MODELS, "--memory-limit", "400MB", "--port", port):
        tab.click("#try-now")
        tab.until(lambda: "live" in tab.text("#connection"), "figures of the next one")
        assert tab.run("return document.querySelector('#banner').hidden")
        assert tab.text("#events-list") == ""
        assert tab.text("#readiness") == "ready"


@pytest.mark.full
@pytest.mark.skipif(not FULL, reason="a thousand models; MODELHOST_TEST_FULL=1 runs it")
def test_a_large_repository_is_searched_and_paged(tab: Browser, tmp_path: Path) -> None:
    scripts = {f"model-{number:04}": FakeScript(resident_bytes=1000) for number in range(1000)}
    with serve(fake_host(tmp_path, scripts)) as host:
        for number in range(250):  # more than a snapshot has
            assert host.infer(f"model-{number:04}").status_code == 200
        tab.open(host.url)
        tab.until(lambda: "1,000 in the repository" in tab.text("#models-count"), "figures")
        rows = "return document.querySelectorAll('#models-body tr').length"
        tab.until(lambda: tab.run(rows) == 200, "those of the snapshot")
        tab.fill("#search", "model-09")
        tab.until(lambda: tab.run(rows) == 50, "a page of those that fit")
        tab.click("#models-more")
        tab.until(lambda: tab.run(rows) == 100, "all of them")
        assert tab.run("return document.querySelector('#models-more').hidden")
        tab.run("document.querySelector('[data-key=name] button').click()")
        assert tab.text("#models-body .name") == "model-0999"


# --- keys --------------------------------------------------------------------------------------------


def use_key(tab: Browser, key: str) -> None:
    tab.until(lambda: tab.run("return document.querySelector('#key-dialog').open"), "the question for a key")
    tab.fill("#key", key)
    tab.press(ENTER)


def forget_key(tab: Browser) -> None:
    tab.click("#forget-key")
    tab.until(lambda: tab.run("return document.querySelector('#key-dialog').open"), "the question for a key")


def test_a_key_is_asked_for_and_what_it_is_not_for_is_said(tab: Browser, tmp_path: Path) -> None:
    made = {role: new_key(f"the-{role}", [role]) for role in ROLES}
    keys = {role: text for role, (text, _) in made.items()}
    file = tmp_path / ".keys"
    file.write_text("".join(f"{key.line()}\n" for _, key in made.values()))
    file.chmod(0o600)
    with serve(fake_host(tmp_path, {"plain": FakeScript()}, security={"keys_file": file})) as host:
        tab.open(host.url)
        tab.until(lambda: tab.run("return document.querySelector('#key-dialog').open"), "the question for a key")
        tab.click("#key-later")
        tab.click("#enter-key")
        use_key(tab, "no such key")
        tab.until(lambda: "no API key that is known" in tab.text("#key-reason"), "the refusal")
        use_key(tab, keys["infer"])
        tab.until(lambda: "The key 'the-infer' is for infer" in tab.text("#banner-text"), "what it is not for")
        open_panel(tab, "plain")  # names there are all the same
        tab.fill(".infer fieldset input", "2")
        tab.fill(".infer textarea", "[1, 2]")
        tab.click(".infer button.main")
        tab.until(lambda: tab.text(".infer .status").startswith("200"), "what it is for")
        assert keys["infer"] not in tab.run("return document.documentElement.outerHTML")
        assert "$MODELHOST_API_KEY" in tab.text(".infer .copied pre")
        tab.press(ESCAPE)
        forget_key(tab)
        use_key(tab, keys["observe"])
        tab.until(lambda: "live" in tab.text("#connection"), "figures")
        press_button(tab, "plain", "Pin")
        tab.until(lambda: "the key 'the-observe' is for observe" in tab.text("#notice"), "the refusal")
        assert tab.run("return document.querySelector('.row-actions button').getAttribute('aria-disabled')") == "true"
        forget_key(tab)
        use_key(tab, keys["manage"])
        tab.until(lambda: "live" in tab.text("#connection"), "figures")
        press_button(tab, "plain", "Pin")
        tab.until(lambda: "plain is pinned" in tab.text("#notice"), "what came of it")
    tab.until(lambda: "No figures come" in tab.text("#banner-text"), "the host has gone")
    assert "What is shown is of" in tab.text("#banner-text")
    assert tab.text("#readiness") == "no answer"


# --- the page of the API -----------------------------------------------------------------------------


def test_the_api_is_shown_to_who_has_a_key_and_all_of_it_comes_from_the_host(tab: Browser, tmp_path: Path) -> None:
    key, line = new_key("the-infer", ["infer"])
    (tmp_path / ".keys").write_text(f"{line.line()}\n")
    (tmp_path / ".keys").chmod(0o600)
    with serve(fake_host(tmp_path, {"plain": FakeScript()}, security={"keys_file": tmp_path / ".keys"})) as host:
        asked(tab), said(tab)
        tab.open(f"{host.url}/docs#ready_name")
        tab.until(lambda: "asks for an API key" in tab.text("#banner-text"), "the question for a key")
        tab.fill("#key", key)
        tab.press(ENTER)
        tab.until(lambda: tab.run("return document.querySelector('#ready_name')?.open"), "what the address names")
        assert "curl -s -H" in tab.text("#ready_name pre")
        assert key not in tab.run("return document.documentElement.outerHTML")
        page = host.http.get("/openapi.json", headers={"Authorization": f"Bearer {key}"}).json()
        shown = tab.run("return [...document.querySelectorAll('#operations summary')].map((one) => one.textContent)")
        operations = [(method.upper(), path) for path, item in page["paths"].items() for method in item]
        assert sorted(" ".join(text.split()[:2]) for text in shown) == sorted(" ".join(one) for one in operations)
        tab.run("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert "inputs*: array of object" in tab.text("#schema-InferRequest pre")
        assert tab.run(LABELS) == []
        assert tab.run(CONTRAST) == []
        tab.fill("#search", ":predict versions")
        assert tab.run("return document.querySelectorAll('#operations details:not([hidden])').length") == 1
        assert said(tab) == []
        assert [one for one in asked(tab) if not one.startswith((host.url + "/", "data:", "about:", "chrome:"))] == []
