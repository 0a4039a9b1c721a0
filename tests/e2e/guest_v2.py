"""Runs as root in a virtual machine with cgroup v2, beside the image: is the limit found, is an answer right?

    CTR_WORK=... bash ../shared/tools/run_in_v2_vm.sh modelhost:latest tests/e2e/guest_v2.py

Standard library only. pytest does not collect it: software emulation takes minutes.
"""

import json
import sys
import time
import urllib.error
import urllib.request

URL = "http://127.0.0.1:8080"
LIMIT_BYTES = 256 << 20

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
    with urllib.request.urlopen(urllib.request.Request(URL + path, data), timeout=60) as response:
        return json.load(response)


def wait_until_ready(timeout_s):
    started = time.monotonic()
    while True:
        try:
            return ask("/v2/health/ready")
        except (urllib.error.URLError, OSError):
            if time.monotonic() - started > timeout_s:
                raise
            time.sleep(1)


def main():
    wait_until_ready(180)
    memory = ask("/memory")
    shown = {key: memory[key] for key in ("limit_source", "limit_bytes", "baseline_bytes", "usage_bytes", "level")}
    print("GUEST memory", json.dumps(shown))
    pixels = [float(pixel) for row in ZERO for pixel in row]
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": pixels}
    logits = ask("/v2/models/digits/infer", {"inputs": [tensor]})["outputs"][0]["data"]
    digit = logits.index(max(logits))
    print("GUEST digit", digit)
    after = ask("/memory")
    print("GUEST models", json.dumps(after["models"]))
    assert memory["limit_source"] == "cgroup v2", memory["limit_source"]
    assert memory["limit_bytes"] == LIMIT_BYTES, memory["limit_bytes"]
    assert digit == 0, logits
    assert after["usage_bytes"] < after["critical_bytes"], after


if __name__ == "__main__":
    sys.exit(main())
