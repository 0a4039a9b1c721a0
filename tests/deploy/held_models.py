"""A hundred models of 20 MB, no two alike, with their artifacts: what a container of 256 MB is to hold."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import models_for_tests as build
import numpy as np
from containers import call, image, run_flags, writable
from onnx import numpy_helper

COUNT, SIZE_MB, LAYERS = 100, 20, 4


@dataclass(frozen=True, slots=True)
class HeldModel:
    """A model, the length of its input, and what it makes of ones."""

    name: str
    side: int
    answer: float

    def question(self) -> dict[str, object]:
        """Returns a request of ones."""
        return {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, self.side], "data": [1.0] * self.side}]}


def write_models(directory: Path) -> list[HeldModel]:
    """Writes the models. Their files have a time in whole seconds, which layers and archives keep."""
    return [_write_model(directory, number) for number in range(COUNT)]


def _write_model(directory: Path, number: int) -> HeldModel:
    model = build.heavy(SIZE_MB, layers=LAYERS)
    for tensor in model.graph.initializer:
        side = tensor.dims[0]
        value = (1 + number / 1000) / side
        tensor.CopyFrom(numpy_helper.from_array(np.full((side, side), value, np.float32), tensor.name))
    name = f"m{number:03d}"
    os.utime(build.save(model, directory, name), (1e9, 1e9))
    return HeldModel(name, side, (1 + number / 1000) ** LAYERS)


def prepare_in_a_container(directory: Path) -> None:
    """Has the image prepare them, with more memory than serving them takes."""
    writable(directory)
    subprocess.run(["chmod", "-R", "go+rX", directory], check=True)
    call(
        *("run", "--rm", *run_flags(), "--memory", "512m", "--volume", f"{directory}:/models", image()),
        *("modelhost", "prepare", "--cache", "/models/.modelhost"),
        timeout_s=3000,
    )
