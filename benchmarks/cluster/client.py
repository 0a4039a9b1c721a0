"""One client of the load: asks models by popularity through tritonclient, and writes a line for each answer.

    python -m benchmarks.cluster.client URL CASES SEED EXPONENT

It asks until its standard input ends. A line is `UNIX_TIME MODEL OUTCOME MILLISECONDS`; outcomes are right, wrong, and
the error of what failed.
"""

from __future__ import annotations

import random
import re
import select
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.models import Case


def main(url: str, cases: Path, seed: int, exponent: float) -> None:
    """Asks and writes."""
    import tritonclient.http as triton

    found = [
        Case(folder.name, np.load(folder / "question.npy"), np.load(folder / "answer.npy"))
        for folder in map(Path, cases.read_text().splitlines())
    ]
    random.Random(1).shuffle(found)  # the same order of popularity for all clients
    weights = [rank**-exponent for rank in range(1, len(found) + 1)]
    choices = random.Random(seed)
    client = triton.InferenceServerClient(url, connection_timeout=60, network_timeout=60)
    outputs = [triton.InferRequestedOutput("y", binary_data=True)]
    while not select.select([sys.stdin], [], [], 0)[0]:
        case = choices.choices(found, weights)[0]
        tensor = triton.InferInput("x", list(case.question.shape), "FP32")
        tensor.set_data_from_numpy(case.question, binary_data=True)
        began = time.time()
        try:
            answer = client.infer(case.name, [tensor], outputs=outputs).as_numpy("y")
            outcome = "right" if case.is_right(answer) else "wrong"
        except Exception as error:
            outcome = re.sub(r"\s+", "_", f"{type(error).__name__}:{error}")[:300]
            if "InferenceServerException" not in outcome:  # its connection is of no use any more
                client = triton.InferenceServerClient(url, connection_timeout=60, network_timeout=60)
        print(f"{began:.4f} {case.name} {outcome} {1e3 * (time.time() - began):.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
