"""The plain loop: one `onnxruntime.InferenceSession` after another, each asked once, and no host around them.

The other side of `python -m benchmarks density`. Reads folders with `model.onnx`, `question.npy` and
`answer.npy`, one a line, and prints its committed bytes and whether the answer was right after each,
until there are no more or the kernel ends it. Imports nothing of modelhost.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import onnxruntime as ort

from benchmarks.smaps import read_process


def main() -> None:
    """Keeps every session."""
    sessions = []
    for line in sys.stdin:
        folder = Path(line.rstrip("\n"))
        session = ort.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
        answer = session.run(None, {"x": np.load(folder / "question.npy")})[0]
        is_right = np.allclose(answer, np.load(folder / "answer.npy"), rtol=0, atol=1e-3)
        sessions.append(session)
        print(read_process("self").committed_bytes, int(is_right), flush=True)


if __name__ == "__main__":
    main()
