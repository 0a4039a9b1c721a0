"""What is everybody's, asked of all replicas and answered as one: metrics, memory, statistics, the index, orders. Pure.

Where processes of one host read the same memory group, replicas have a limit and a usage each: those add up.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeAlias

from modelhost.api.merging import (
    merge_history,
    merge_index,
    merge_memory,
    merge_metrics,
    merge_monitor,
    merge_statistics,
    page_limit,
)
from modelhost.cluster.messages import Answered

#: Makes one body of those of all that have answered well, and of that of the request.
Merge: TypeAlias = Callable[[Sequence[Answered], bytes], bytes]

_LABEL: Final = "replica"
_LEVELS: Final = ("normal", "warning", "critical")

#: Of `GET /memory`, what each replica has a figure of its own for.
_ADDED: Final = (
    "limit_bytes",
    "baseline_bytes",
    "usage_bytes",
    "available_bytes",
    "reserved_bytes",
    "warning_bytes",
    "critical_bytes",
    "min_free_bytes",
    "activation_ceiling_bytes",
)


def merge_for(method: str, path: str) -> Merge | None:
    """Returns what makes one answer of all replicas'; None for a request that one of them answers."""
    parts = path.split("/")[1:]
    if method in ("GET", "HEAD"):
        if parts[-1] == "stats" and parts[:2] == ["v2", "models"]:
            return _json(merge_statistics)
        return _READ.get(path)
    if parts == ["v2", "repository", "index"]:
        return _index
    # A model is loaded where it lives, and unloaded wherever it is.
    is_told = parts[:2] in (["v2", "logging"], ["memory", "cleanup"]) or parts[-1] in ("pin", "unload")
    return _fullest if is_told else None


def model_of(path: str) -> str:
    """Returns the name of the model that a path is about; empty where it is about none."""
    match path.split("/")[1:]:
        case ["v1" | "v2", "models", name, *_]:
            return name.partition(":")[0]
        case ["v2", "repository", "models", name, *_] | ["monitor", "models", name, *_]:
            return name
    return ""


def one_of(merge: Merge, answers: Sequence[Answered], asked: bytes = b"") -> Answered:
    """Returns one answer for all, whose request's body is `asked`: merged from those that went well, else the first
    that did not."""
    good = [answer for answer in answers if answer.status < 400]
    if not good:
        return answers[0]
    first = good[0]
    return Answered(first.replica, first.status, first.headers, merge(good, asked))


# --- inside --------------------------------------------------------------------------------------


def _json(merge: Callable[[Sequence[tuple[str, Any]]], Any]) -> Merge:
    return lambda said, _: json.dumps(merge(_read(said))).encode()


def _read(said: Sequence[Answered]) -> list[tuple[str, Any]]:
    return [(one.replica, json.loads(one.body)) for one in said]


def _index(said: Sequence[Answered], asked: bytes) -> bytes:
    return json.dumps(merge_index(_read(said), page_limit(asked))).encode()


def _fullest(said: Sequence[Answered], _: bytes) -> bytes:
    """Returns the answer that says most: of an unload, that of a replica which had the model."""
    return max((one.body for one in said), key=len)


def _metrics(said: Sequence[Answered], _: bytes) -> bytes:
    return merge_metrics([(one.replica, one.body.decode()) for one in said], _LABEL, ()).encode()


def _memory(said: Sequence[tuple[str, Any]]) -> Any:
    return merge_memory(said, _LABEL) | _added([(name, answer) for name, answer in said])


def _monitor(said: Sequence[tuple[str, Any]]) -> Any:
    whole = merge_monitor(said)
    whole["memory"] |= _added([(name, answer["memory"]) for name, answer in said])
    bars = [answer["bar"] for _, answer in said]
    whole["bar"] = {name: sum(bar[name] or 0 for bar in bars) for name in bars[0]}
    return whole


def _added(said: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    answers = [answer for _, answer in said]
    return {
        **{name: sum(answer[name] for answer in answers) for name in _ADDED},
        "level": max((answer["level"] for answer in answers), key=_LEVELS.index),
        "replicas": [
            {_LABEL: name, **{key: answer[key] for key in (*_ADDED, "level", "raw")}} for name, answer in said
        ],
        "raw": {},
    }


_READ: Final[dict[str, Merge]] = {
    "/memory": _json(_memory),
    "/metrics": _metrics,
    "/monitor": _json(_monitor),
    "/monitor/history": _json(merge_history),
}
