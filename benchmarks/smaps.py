"""One process's memory as the kernel counts it. Imports next to nothing: it measures imports too."""

from __future__ import annotations

from typing import NamedTuple


class ProcessFigures(NamedTuple):
    """Bytes."""

    committed_bytes: int
    """Anonymous memory, which the kernel cannot take back."""
    rss_bytes: int
    pss_bytes: int


def read_process(pid: int | str) -> ProcessFigures:
    """Reads smaps_rollup of `pid`, or of "self"; exact, and takes up to milliseconds."""
    table = {}
    with open(f"/proc/{pid}/smaps_rollup") as stream:
        next(stream)
        for line in stream:
            key, value = line.split()[:2]
            table[key] = int(value) * 1024
    return ProcessFigures(table["Anonymous:"], table["Rss:"], table["Pss:"])


class MappingFigures(NamedTuple):
    """What the kernel keeps for a process besides its pages."""

    mappings: int
    """Of which there may be vm.max_map_count (65530 by default)."""
    page_table_bytes: int


def read_mappings(pid: int | str) -> MappingFigures:
    """Counts the mappings of `pid`, or of "self"."""
    with open(f"/proc/{pid}/maps", "rb") as stream:
        mappings = sum(1 for _ in stream)
    return MappingFigures(mappings, read_status("VmPTE", pid))


class TrafficFigures(NamedTuple):
    """What a process has had from the disk since it began."""

    read_bytes: int
    major_faults: int
    """Accesses to a page that was not in memory."""


def read_traffic(pid: int | str) -> TrafficFigures:
    """Reads the counters of `pid`, or of "self"."""
    with open(f"/proc/{pid}/io") as stream:
        table = dict(line.split(":", 1) for line in stream)
    with open(f"/proc/{pid}/stat") as stream:
        fields = stream.read().rpartition(")")[2].split()  # from the third of proc(5) on
    return TrafficFigures(int(table["read_bytes"]), int(fields[9]))


def read_status(field: str, pid: int | str = "self") -> int:
    """Reads one figure of /proc/PID/status, in bytes: VmRSS, VmHWM (its peak), VmPTE (page tables)."""
    with open(f"/proc/{pid}/status") as stream:
        table = dict(line.split(":", 1) for line in stream)
    return int(table[field].split()[0]) * 1024
