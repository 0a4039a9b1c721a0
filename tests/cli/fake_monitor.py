"""A host for views: answers the feed's JSON as it was scripted, at once, and notes what it was asked to do."""

from __future__ import annotations

import copy
from typing import Any

MB = 1 << 20
AT = 1764431000.0


def model(name: str, state: str = "ready", **more: Any) -> dict[str, Any]:
    is_loaded = state != "UNAVAILABLE"
    return {
        "name": name,
        "version": "1",
        "state": state,
        "committed_bytes": 2 * MB if is_loaded else 0,
        "leases": 0,
        "pinned": False,
        "last_used": AT - 30 if is_loaded else None,
        "waiting": 0,
        "weights_bytes": 20 * MB if is_loaded else None,
        "cached_bytes": 12 * MB if is_loaded else None,
        "requests": 100,
        "failures": 0,
        "requests_per_s": 12.5 if is_loaded else None,
        "p50_ms": 1.25 if is_loaded else None,
        "p99_ms": 10.5 if is_loaded else None,
        "loads": 3,
        "evictions": 2,
        "cold_starts": 1,
        "load_seconds": 0.5,
        "run_seconds": 1.5,
        **more,
    }


def event(number: int, kind: str = "recovery", **more: Any) -> dict[str, Any]:
    return {
        "id": number,
        "at": AT - 100 + number,
        "kind": kind,
        "level": "normal",
        "usage_bytes": 96 * MB,
        "cause": "request",
        **more,
    }


def snapshot(**memory: Any) -> dict[str, Any]:
    """A host of 256 MB with two models in memory and one on disk; `memory` replaces figures of it."""
    return {
        "at": AT,
        "host": {"version": "0.1.0", "ready": True, "draining": False, "uptime_s": 7200.0, "pid": 1},
        "memory": {
            "limit_bytes": 256 * MB,
            "limit_source": "cgroup v1",
            "baseline_bytes": 54 * MB,
            "usage_bytes": 96 * MB,
            "available_bytes": 96 * MB,
            "reserved_bytes": 0,
            "warning_bytes": 172 * MB,
            "critical_bytes": 192 * MB,
            "min_free_bytes": 30 * MB,
            "activation_ceiling_bytes": 64 * MB,
            "activations": {"ceiling_bytes": 64 * MB, "claimed_bytes": 0, "waiting": 0},
            "level": "normal",
            "raw": {},
            "page_cache": {
                "weights_bytes": 40 * MB,
                "cached_bytes": 24 * MB,
                "cached_share": 0.6,
                "refaulted_bytes_total": 0,
                "refaulted_bytes_per_s": 1.5 * MB,
                "major_faults_total": 10,
                "major_faults_per_s": 3.2,
                "process_major_faults_total": 10,
                "psi_some_avg10": 1.0,
                "psi_full_avg10": 0.5,
                "psi_is_machines": False,
                "is_thrashing": False,
            },
            "forecast": {"growth": None, "place": None, "to_warning_s": None, "to_critical_s": None},
            "conditions": [],
            "waiting": 0,
            "runs_in_flight": 1,
            **memory,
        },
        "bar": {
            "host_bytes": 56 * MB,
            "models_bytes": 20 * MB,
            "loading_bytes": 12 * MB,
            "activations_bytes": 8 * MB,
            "weights_cached_bytes": 24 * MB,
        },
        "totals": {
            "requests": 1000,
            "failures": 0,
            "requests_per_s": 120.0,
            "failures_per_s": 0.0,
            "p50_ms": 1.2,
            "p99_ms": 12.0,
            "loads": 5,
            "evictions": 2,
            "refusals": 0,
            "cold_starts": 3,
            "in_flight": 1,
            "waiting": 0,
        },
        "models": [
            model("digits", committed_bytes=14 * MB, pinned=True, last_used=AT - 3),
            model("wine", "loading", cached_bytes=None, weights_bytes=None),
            model("iris", "UNAVAILABLE"),
        ],
        "models_known": 120,
        "events": [event(1, "level", **{"from": "warning"}), event(2, victims=["iris:1"])],
        "policy": None,
    }


class FakeSource:
    """Answers `now`, or raises `error` where there is one."""

    url = "http://127.0.0.1:8080"

    def __init__(self) -> None:
        self.now = snapshot()
        self.error: Exception | None = None
        self.repository = [f"model{number:02}" for number in range(60)]
        self.asked: list[tuple[object, ...]] = []
        self.looks = 0

    def look(self) -> dict[str, Any]:
        self.looks += 1
        if self.error is not None:
            raise self.error
        return copy.deepcopy(self.now)

    def search(self, text: str) -> dict[str, Any]:
        self._ask("search", text)
        found = [name for name in self.repository if text in name]
        models = [{"name": name, "versions": ["1"], "state": "UNAVAILABLE", "pinned": False} for name in found[:50]]
        return {"total": len(found), "models": models}

    def load(self, name: str) -> None:
        self._ask("load", name)

    def unload(self, name: str) -> None:
        self._ask("unload", name)

    def pin(self, name: str, *, pinned: bool) -> None:
        self._ask("pin", name, pinned)

    def clean_up(self) -> dict[str, Any] | None:
        self._ask("clean up")
        return {"freed_bytes": 14 * MB, "victims": ["wine:1"]}

    def _ask(self, *what: object) -> None:
        self.asked.append(what)
        if self.error is not None:
            raise self.error
