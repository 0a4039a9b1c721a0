"""The host that other people's clients talk to: the shipped models, and some that show what a client can break."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import models_for_tests as build
import pytest
from host_process import MODELS, HostProcess, running_host
from onnx import TensorProto

from benchmarks.tracebacks import first_traceback

#: Needs percent-encoding; decoded twice it would be another name.
ODD_NAME = "grün & rot 50%25"


@pytest.fixture(scope="session")
def client_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped models, `versions` 1 and 2, `passing` for loads and unloads, `every_type`,
    `every_typed` (without FP16), `bf16`, `scalar`, and an odd name."""
    directory = tmp_path_factory.mktemp("clients") / "models"
    for name in ("digits", "wine", "iris_petals"):
        shutil.copytree(MODELS / name, directory / name)
    for version, constant in (("1", 1.0), ("2", 2.0)):
        build.save(build.add_constant(constant), directory, "versions", version)
    build.save(build.add_constant(3.0), directory, "passing")
    build.save(build.add_constant(4.0), directory, ODD_NAME)
    build.save(build.every_type(), directory, "every_type")
    build.save(build.every_type(half=False), directory, "every_typed")
    build.save(build.identity(TensorProto.BFLOAT16), directory, "bf16")
    build.save(build.scalar(), directory, "scalar")
    return directory


@pytest.fixture(scope="session")
def client_host(client_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host of 400 MB behind HTTP; nothing that a client does there makes it write a traceback."""
    with running_host(tmp_path_factory.mktemp("host"), client_models, "--memory-limit", "400MB") as running:
        yield running
        assert first_traceback(running.log) is None
