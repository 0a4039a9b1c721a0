"""Runs as root in a virtual machine with cgroup v2, beside the image; test_image_v2.py starts it.

The host has models and their artifacts in /guest/models, and what is asked of each stands in /guest/cases.json.
Standard library only, on the image's own Python.
"""

import http.client
import json
import pathlib
import sys
import time

GROUP = pathlib.Path("/sys/fs/cgroup/app")
#: Software emulation: what takes a second elsewhere takes a minute here.
PATIENCE_S = 600


def ask(path, document=None):
    connection = http.client.HTTPConnection("127.0.0.1", 8080, timeout=PATIENCE_S)
    if document is None:
        connection.request("GET", path)
    else:
        connection.request("POST", path, json.dumps(document))
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 200, f"{path}: {answer.status} {body.decode()}"
    return json.loads(body)


def say(what, **found):
    print("GUEST", what, json.dumps(found), flush=True)


def wait_until_ready():
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ask("/v2/health/ready")
        except (AssertionError, OSError, http.client.HTTPException):
            assert time.monotonic() < end, "the host is not ready"
            time.sleep(0.2)


def how_it_runs():
    """The host's user and what it may do, by the kernel."""
    for number in (GROUP / "cgroup.procs").read_text().split():
        process = pathlib.Path("/proc", number)
        status = dict(line.split(":\t", 1) for line in (process / "status").read_text().splitlines() if ":\t" in line)
        root = next(line.split() for line in (process / "mountinfo").read_text().splitlines() if line.split()[4] == "/")
        say("process", uid=status["Uid"].split()[0], root=root[5], capabilities=status["CapEff"])
        assert status["Uid"].split()[0] == "10001", status["Uid"]
        assert "ro" in root[5].split(","), root
        assert int(status["CapEff"], 16) == 0, status["CapEff"]


def main():
    wait_until_ready()
    how_it_runs()
    cases = json.loads(pathlib.Path("/guest/cases.json").read_text())
    began = time.monotonic()
    for case in cases:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, case["side"]], "data": [1.0] * case["side"]}
        found = ask(f"/v2/models/{case['name']}/infer", {"inputs": [tensor]})["outputs"][0]["data"]
        assert abs(found[0] - case["answer"]) < 1e-3 * case["answer"], (case, found[0])
    memory = ask("/memory")
    events = dict(line.split() for line in (GROUP / "memory.events").read_text().splitlines())
    say(
        "held",
        models=len(memory["models"]),
        usage_mb=round(memory["usage_bytes"] / 2**20),
        limit_mb=memory["limit_bytes"] >> 20,
        source=memory["limit_source"],
        seconds=round(time.monotonic() - began),
        **events,
    )
    assert memory["limit_source"] == "cgroup v2", memory["limit_source"]
    assert memory["limit_bytes"] == int((GROUP / "memory.max").read_text())
    assert len(memory["models"]) == len(cases)
    assert events["oom_kill"] == "0", events
    say("done")


if __name__ == "__main__":
    sys.exit(main())
