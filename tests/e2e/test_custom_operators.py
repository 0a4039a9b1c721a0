"""Libraries with operators are code: they are loaded where they are configured, and nowhere else."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import httpx
import models_for_tests as build
import pytest
from host_process import running_host

from modelhost.errors import ConfigError
from modelhost.runtime.ort import identity

_SOURCE = """
#include <stdio.h>
#include <unistd.h>
__attribute__((constructor)) static void loaded(void) {
  FILE *mark = fopen(MARK, "a");
  if (mark) { fprintf(mark, "%d\\n", getpid()); fclose(mark); }
}
void *RegisterCustomOps(void *options, const void *api) { return 0; }
"""

_REQUEST = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A library that adds no operator, and writes down which processes have loaded it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("cc, which makes the library, is missing")
    (tmp_path / "ops.c").write_text(_SOURCE)
    file = tmp_path / "libops.so"
    mark = f'-DMARK="{tmp_path / "loaded"}"'
    subprocess.run([compiler, "-shared", "-fPIC", mark, "-o", file, tmp_path / "ops.c"], check=True, timeout=60)
    return file


def test_a_library_is_loaded_by_host_and_child_where_it_is_configured(tmp_path: Path, library: Path) -> None:
    models, mark = tmp_path / "models", tmp_path / "loaded"
    build.save(build.add_constant(1), models, "add")
    shutil.copy(library, models / "add" / "1" / "libcustom_op_library.so")  # beside a model it is just a file
    with running_host(tmp_path, models, "--memory-limit", "400MB") as host:
        assert httpx.post(f"{host.url}/v2/models/add/infer", json=_REQUEST, trust_env=False).status_code == 200
    assert not mark.exists()
    made = {path.name for path in (models / ".modelhost").iterdir()}

    configured = {"MODELHOST_RUNTIME_CUSTOM_OP_LIBRARIES": str(library)}
    with running_host(tmp_path, models, "--memory-limit", "400MB", **configured) as host:
        answer = httpx.post(f"{host.url}/v2/models/add/infer", json=_REQUEST, trust_env=False)
        assert answer.json()["outputs"][0]["data"] == [2]
        loaded = set(mark.read_text().split())
        assert str(host.process.pid) in loaded
        assert len(loaded) > 1  # what prepares a model opens it as the host does
    assert {path.name for path in (models / ".modelhost").iterdir()} > made  # an artifact is for what it was made with


def test_a_library_that_is_not_there_stops_the_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runtime.custom_op_libraries: cannot read .*libops.so: No such file"):
        identity([tmp_path / "libops.so"])
