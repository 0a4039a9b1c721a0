"""A real cluster on one machine: a raylet for each node, in a memory group of its own where one can be made."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import psutil

from benchmarks.places import ROOT
from modelhost.testing import cgroup
from modelhost.testing.cgroup import MemoryCgroup

#: A node's memory while Ray starts on it. Then it is what Ray has taken, a replica's share, and so much for what Ray
#: has yet to take: a worker beside the replica's, and on the head the ingress.
_STARTING_BYTES: Final = 4 << 30
_WORKER_MARGIN_BYTES: Final = 64 << 20
_HEAD_MARGIN_BYTES: Final = 320 << 20

_OBJECT_STORE_BYTES: Final = 80 << 20

#: No keys in the user's home, no figures to the makers of Ray, no dashboard.
_ENVIRONMENT: Final = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_SERVE_ENABLE_TASK_EVENTS": "0",
    "RAY_DEDUP_LOGS": "0",
}


@dataclass(slots=True)
class Node:
    """One raylet with all that it starts."""

    name: str
    handle: Any
    group: MemoryCgroup | None

    @property
    def kills(self) -> int | None:
        """How often the kernel has killed in its group; None where it has none."""
        return None if self.group is None else self.group.read().oom_kills

    @property
    def usage_bytes(self) -> int | None:
        """What the kernel cannot take back from its group."""
        return None if self.group is None else self.group.read().usage_bytes

    def has(self, pid: int) -> bool:
        """Whether a process is this node's."""
        with contextlib.suppress(psutil.Error):
            parents = {parent.pid for parent in psutil.Process(pid).parents()}
            return any(p.process.pid in parents for ps in self.handle.all_processes.values() for p in ps)
        return False


@dataclass(slots=True)
class Nodes:
    """A cluster while it is up."""

    cluster: Any
    port: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Where Serve's proxy of the head node listens."""
        return f"127.0.0.1:{self.port}"

    def kill(self, node: Node) -> None:
        """Ends a node with all its processes, unannounced."""
        if node.group is not None:
            node.group.kill()
        self.cluster.remove_node(node.handle, allow_graceful=False)

    @property
    def kills(self) -> int | None:
        """Kills by the kernel on all nodes."""
        found = [node.kills for node in self.nodes]
        return None if None in found else sum(kills or 0 for kills in found)


def why_no_groups() -> str | None:
    """Returns why nodes get no memory groups here."""
    return cgroup.available()


@contextlib.contextmanager
def running(count: int, *, share_bytes: int) -> Iterator[Nodes]:
    """Runs a cluster of so many nodes, the first being its head; each has room for one replica of `share_bytes`."""
    os.environ.update(_ENVIRONMENT)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster

    has_groups = why_no_groups() is None
    with contextlib.ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="mh-ray-", ignore_cleanup_errors=True))
        found = Nodes(Cluster(), _free_port())
        for number in range(count):
            group = stack.enter_context(MemoryCgroup(_STARTING_BYTES)) if has_groups else None
            with _inside(group):
                handle = found.cluster.add_node(
                    num_cpus=1,  # logical: each node has room for one replica
                    memory=share_bytes,
                    object_store_memory=_OBJECT_STORE_BYTES,
                    **({} if number else {"include_dashboard": False, "temp_dir": scratch}),
                )
            found.nodes.append(Node(f"node {number}" if number else "head", handle, group))
        stack.callback(found.cluster.shutdown)
        ray.init(address=found.cluster.address, log_to_driver=False, logging_level="error")
        stack.callback(ray.shutdown)
        found.cluster.wait_for_nodes()
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": found.port})
        stack.callback(serve.shutdown)
        for number, node in enumerate(found.nodes):
            if node.group is not None:
                margin_bytes = _WORKER_MARGIN_BYTES if number else _HEAD_MARGIN_BYTES
                node.group.change_limit(node.group.read().usage_bytes + share_bytes + margin_bytes)
        yield found


@contextlib.contextmanager
def _inside(group: MemoryCgroup | None) -> Iterator[None]:
    """Has what is started meanwhile begin its life in the group: this process is there as long."""
    if group is None:
        yield
        return
    group.enter()
    try:
        yield
    finally:
        (group.path.parent / "cgroup.procs").write_text(str(os.getpid()))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def wait_until(holds: Callable[[], bool], *, timeout_s: float, every_s: float = 0.2) -> bool:
    """Waits until `holds()` is true; says whether it is."""
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            if holds():
                return True
        time.sleep(every_s)
    return False
