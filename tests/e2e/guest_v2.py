"""Runs as root in a virtual machine with cgroup v2, beside the image; test_cgroup_v2.py starts it.

What the host says of its limit, its usage and the kernel's pressure is held against the files of its group, read here
from outside of it; then more models are asked for than fit, and the limit is lowered while they are: with `memory.high`
first, and at last in one write that nobody has announced. What comes of that is told, and need not go well.

Standard library only, on the image's own Python. Without models of its own (`/guest/cases.json`) the image's
shipped one has to do, and the limit stays.
"""

import json
import pathlib
import sys
import threading
import time
import urllib.error
import urllib.request

URL = "http://127.0.0.1:8080"
GROUP = pathlib.Path("/sys/fs/cgroup/app")
CASES = pathlib.Path("/guest/cases.json")
MB = 1 << 20
#: Critical is 120 MB then: less than is used before, and room for the load of any of the models once others have left.
LOWERED_BYTES = 160 * MB
#: Less than models hold up to warning (172 MB), more than the host without them.
STROKE_BYTES = 128 * MB
#: Software emulation: what takes a second elsewhere takes a minute here.
PATIENCE_S = 600

# The first image of scikit-learn's digits, a 0.
ZERO = [
    [0, 0, 5, 13, 9, 1, 0, 0],
    [0, 0, 13, 15, 10, 15, 5, 0],
    [0, 3, 15, 2, 0, 11, 8, 0],
    [0, 4, 12, 0, 0, 8, 8, 0],
    [0, 5, 8, 0, 0, 9, 8, 0],
    [0, 4, 11, 0, 1, 12, 7, 0],
    [0, 2, 14, 5, 10, 12, 0, 0],
    [0, 0, 6, 13, 10, 0, 0, 0],
]


def ask(path, document=None):
    data = None if document is None else json.dumps(document).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(URL + path, data), timeout=PATIENCE_S) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise AssertionError(f"{path}: {error.code} {error.read().decode()}") from None


def until(found, what):
    end = time.monotonic() + PATIENCE_S
    while not (value := found()):
        assert time.monotonic() < end, what()
        time.sleep(0.2)
    return value


def is_ready():
    try:
        return ask("/v2/health/ready")
    except (AssertionError, OSError):
        return None


def table(name):
    return {key: int(value) for key, value in map(str.split, (GROUP / name).read_text().splitlines())}


def figures():
    """What the kernel says: what cannot be given back, what can, and what happened so far."""
    stat = table("memory.stat")
    file_bytes = stat["inactive_file"] + stat["active_file"]
    used_bytes = int((GROUP / "memory.current").read_text()) - file_bytes
    return {"usage_mb": round(used_bytes / MB, 1), "file_mb": round(file_bytes / MB, 1), **table("memory.events")}


def say(what, **found):
    print("GUEST", what, json.dumps(found), flush=True)


def look_at_the_figures(limit_bytes):
    """The host's figures are those of its group's files, read at nearly the same moment."""
    memory, seen = ask("/memory"), figures()
    say("memory", **{key: memory[key] for key in ("limit_source", "limit_bytes", "baseline_bytes", "usage_bytes")})
    say("kernel", **seen)
    assert memory["limit_source"] == "cgroup v2", memory["limit_source"]
    assert memory["limit_bytes"] == limit_bytes, memory["limit_bytes"]
    assert abs(memory["usage_bytes"] / MB - seen["usage_mb"]) < 4, (memory["usage_bytes"], seen)
    raw = memory["raw"]
    assert raw["level_limit_bytes"] == limit_bytes, raw
    cache = memory["page_cache"]
    say("pressure", **cache)
    assert cache["psi_full_avg10"] is not None, cache
    assert cache["refaulted_bytes_total"] is not None, cache


def ask_a_digit():
    pixels = [float(pixel) for row in ZERO for pixel in row]
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": pixels}
    logits = ask("/v2/models/digits/infer", {"inputs": [tensor]})["outputs"][0]["data"]
    assert logits.index(max(logits)) == 0, logits


def ask_a_case(case):
    tensor = {"name": "x", "datatype": "FP32", "shape": case["shape"], "data": case["question"]}
    found = ask(f"/v2/models/{case['name']}/infer", {"inputs": [tensor]})["outputs"][0]["data"]
    assert len(found) == len(case["answer"]), case["name"]
    assert max(abs(one - other) for one, other in zip(found, case["answer"], strict=True)) < 1e-3, case["name"]


def ask_for_more_than_fit(cases):
    for case in cases * 2:  # opened by a child at first, which takes what others have
        started = time.monotonic()
        ask_a_case(case)
        say("asked", name=case["name"], took_s=round(time.monotonic() - started, 1), **figures())
    metrics = urllib.request.urlopen(URL + "/metrics", timeout=PATIENCE_S).read().decode()
    evictions = next(line for line in metrics.splitlines() if line.startswith("modelhost_evictions"))
    say("evictions", line=evictions)
    assert float(evictions.split()[-1]) > 0, "all fitted: this has shown nothing"
    assert figures()["oom_kill"] == 0


class Load:
    """A client that asks for more models than the lowered limit takes, until the context ends."""

    def __init__(self, cases):
        self.cases, self.answered, self.refused, self.failed = cases, [], [], []
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._ask)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc_info):
        self._stop.set()
        self._thread.join()

    def _ask(self):
        while not self._stop.is_set():
            for case in self.cases:
                try:
                    ask_a_case(case)
                except Exception as error:
                    is_refused = "insufficient_memory" in str(error)  # while models leave
                    (self.refused if is_refused else self.failed).append(repr(error))
                    time.sleep(0.2)
                else:
                    self.answered.append(case["name"])


def lower_the_limit_under_load(cases):
    """As docs/durability.md says: `memory.high` first, `memory.max` when usage is below it."""
    with Load(cases[-3:]) as load:
        lower_in_two_steps(load)
    memory, seen = ask("/memory"), figures()
    say("afterwards", answered=len(load.answered), refused=len(load.refused), failed=load.failed[:3], **seen)
    assert not load.failed
    assert memory["limit_bytes"] == LOWERED_BYTES, memory["limit_bytes"]
    assert seen["oom_kill"] == 0, seen


def lower_in_two_steps(load):
    before = figures()
    started = time.monotonic()
    (GROUP / "memory.high").write_text(str(LOWERED_BYTES))
    until(lambda: ask("/memory")["limit_bytes"] == LOWERED_BYTES, lambda: "the limit is not followed")
    followed_s = time.monotonic() - started
    until(lambda: figures()["usage_mb"] < LOWERED_BYTES * 3 / 4 / MB, lambda: f"it does not shed: {figures()}")
    (GROUP / "memory.max").write_text(str(LOWERED_BYTES))
    (GROUP / "memory.high").write_text("max")
    say("lowered", followed_s=round(followed_s, 1), shed_s=round(time.monotonic() - started, 1), before=before)
    count, refused = len(load.answered), len(load.refused)
    until(lambda: len(load.answered) >= count + 6, lambda: f"no answers any more: {load.refused[-1:]}")
    assert len(load.refused) <= refused + 1, load.refused[refused:]  # one may have been under way


def lower_the_limit_in_one_write(cases, limit_bytes):
    """A write that nobody has announced, below what is used: the kernel takes back what it can, and kills then."""
    (GROUP / "memory.max").write_text(str(limit_bytes))
    until(lambda: ask("/memory")["limit_bytes"] == limit_bytes, lambda: "the limit is not followed up again")
    for case in cases:
        ask_a_case(case)
    with Load(cases[:1]) as load:
        until(lambda: load.answered, lambda: "no answers")
        before, started = figures(), time.monotonic()
        (GROUP / "memory.max").write_text(str(STROKE_BYTES))
        took_s = time.monotonic() - started
    after = figures()
    say("one write", took_s=round(took_s, 2), before=before, after=after)
    if after["oom_kill"] == before["oom_kill"]:
        until(lambda: ask("/memory")["limit_bytes"] == STROKE_BYTES, lambda: "the limit is not followed")
        until(lambda: figures()["usage_mb"] < STROKE_BYTES / MB, lambda: f"it does not shed: {figures()}")
    say("one write afterwards", refused=len(load.refused), failed=load.failed[:3], **figures())


def main():
    until(is_ready, lambda: "the host is not ready")
    limit_bytes = int((GROUP / "memory.max").read_text())
    look_at_the_figures(limit_bytes)
    if not CASES.exists():
        ask_a_digit()
        return
    cases = json.loads(CASES.read_text())
    ask_for_more_than_fit(cases)
    lower_the_limit_under_load(cases)
    lower_the_limit_in_one_write(cases, limit_bytes)
    say("done")


if __name__ == "__main__":
    sys.exit(main())
