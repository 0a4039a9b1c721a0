"""The image under cgroup v2, in a virtual machine whose kernel has nothing else. Full form only: it is emulated.

`CONTAINER_VM` is a command that takes an image's tag, a script and a limit in bytes: it boots a machine with the
image's files as its root, runs the image's command in a cgroup of that limit without swap, and the script beside it.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import pytest
from containers import build_flags, call, image, tool
from held_models import prepare_in_a_container, write_models
from sizes import FULL

MACHINE = os.environ.get("CONTAINER_VM", "")
IMAGE = "modelhost-held:latest"
TIMEOUT_S = 3000

pytestmark = [
    pytest.mark.full,
    pytest.mark.serial,
    pytest.mark.timeout(3 * TIMEOUT_S),
    pytest.mark.skipif(not FULL, reason="an emulated machine takes minutes; MODELHOST_TEST_FULL=1 runs it"),
    pytest.mark.skipif(FULL and not (MACHINE and tool()), reason="no tool for containers, or no CONTAINER_VM"),
]

#: The machine starts the command as root; it makes its root read-only, and becomes the image's own user. What was
#: prepared here has to be taken there, so its CPU says that it is this one.
DOCKERFILE = """\
FROM docker.io/library/python:3.11-slim-bookworm AS tools
FROM {image}
COPY --from=tools /usr/bin/unshare /usr/bin/unshare
COPY models /guest/models
COPY cases.json cpuinfo /guest/
ENV MODELHOST_SECURITY_INSECURE=true MODELHOST_MODELS_DIRECTORY=/guest/models MODELHOST_PREPARE_ON_LOAD=false \\
    MODELHOST_POOL_WAIT_TIMEOUT_S=600 MODELHOST_SERVER_REQUEST_TIMEOUT_S=600
USER 0:0
CMD ["sh", "-c", "/bin/busybox mount --bind /guest/cpuinfo /proc/cpuinfo \\
  && /bin/busybox mount -o remount,bind,ro / && exec /usr/sbin/chroot --userspec=10001:10001 / modelhost serve"]
"""


def test_it_holds_a_hundred_prepared_models_of_20_mb_under_cgroup_v2(tmp_path: Path) -> None:
    base = Path(os.environ.get("CONTAINER_MODELS", tmp_path))
    models = write_models(base / "models")
    prepare_in_a_container(base / "models")
    (base / "cases.json").write_text(json.dumps([asdict(model) for model in models]))
    (base / "Dockerfile").write_text(DOCKERFILE.format(image=image()))
    shutil.copy("/proc/cpuinfo", base / "cpuinfo")
    call("build", *build_flags(), "--tag", IMAGE, str(base), timeout_s=TIMEOUT_S)
    command = [*shlex.split(MACHINE), IMAGE, str(Path(__file__).with_name("guest_image.py")), str(256 << 20)]
    done = subprocess.run(
        command,
        env={**os.environ, "VM_TIMEOUT": str(TIMEOUT_S)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=TIMEOUT_S + 600,
        check=False,
    )
    print("\n".join(line for line in done.stdout.splitlines() if "GUEST" in line))
    assert "GUEST test rc=0" in done.stdout, done.stdout[-4000:]
    assert "oom_kill 0" in done.stdout
