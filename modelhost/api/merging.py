"""What several processes say of themselves, as one answer for the host. Pure: answers in, an answer out.

Each function takes the asked process's own answer first; seats say whose the others are: numbers of processes, or names
of a cluster's replicas (`label`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

#: A process's number or name, and the JSON that it has answered.
Seat: TypeAlias = int | str
Said: TypeAlias = tuple[Seat, Any]

#: The states of the repository extension, the one first that says most.
_STATES: Final = ("READY", "LOADING", "UNLOADING", "UNAVAILABLE")

#: Beginnings of families that all processes read from the same place: once is enough.
_OF_THE_HOST: Final = (
    "modelhost_info",
    "modelhost_major_faults",
    "modelhost_memory_baseline",
    "modelhost_memory_critical",
    "modelhost_memory_growth",
    "modelhost_memory_level",
    "modelhost_memory_limit",
    "modelhost_memory_psi",
    "modelhost_memory_seconds_to_critical",
    "modelhost_memory_usage",
    "modelhost_memory_warning",
    "modelhost_models_known",
    "modelhost_page_cache_refaulted",
    "modelhost_page_cache_thrashing",
    "modelmesh_instance_capacity",
    "modelmesh_models_managed",
    "nv_cpu_memory",
)


def merge_statistics(said: Sequence[Said]) -> Any:
    """Adds the totals of each model and version up; the last request is the last one anywhere."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for _, answer in said:
        for model in answer["model_stats"]:
            key = (model["name"], model["version"])
            found[key] = model if key not in found else _sum(found[key], model)
    return {"model_stats": [found[key] for key in sorted(found, key=_by_version)]}


def merge_index(said: Sequence[Said], limit: int | None = None) -> Any:
    """Returns each version once, by name, in the state that says most: where one process has it ready, it is ready.

    With the `limit` that all were asked with, a page: what it has, each process had room to say on its own.
    """
    found: dict[str, dict[str, dict[str, str]]] = {}
    for _, answer in said:
        for entry in answer:
            versions = found.setdefault(entry["name"], {})
            known = versions.get(entry["version"])
            if known is None or _STATES.index(entry["state"]) < _STATES.index(known["state"]):
                versions[entry["version"]] = entry
    return [entry for name in sorted(found)[:limit] for entry in found[name].values()]


def page_limit(asked: bytes) -> int | None:
    """Returns the `limit` of a request for the index that each of them has answered; None where there is none."""
    limit = json.loads(asked).get("limit") if asked else None
    return None if limit is None else int(limit)


def merge_memory(said: Sequence[Said], label: str = "worker") -> Any:
    """Returns the host's memory: what is read of the group from the first, models and events of all, by process."""
    first = dict(said[0][1])
    first["models"] = _tagged(said, "models", label)
    first["events"] = sorted(_tagged(said, "events", label), key=lambda event: event["at"])
    first |= _of_all([answer for _, answer in said])
    first["page_cache"] = {**first["page_cache"], **_weights(first["models"])}
    return first


def merge_monitor(said: Sequence[Said]) -> Any:
    """Returns what views show of the host: each model once, with the workers that have it; usage in disjoint parts.

    Times are those of the slowest process: the middle of all requests cannot be told from each one's own.
    """
    answers = [answer for _, answer in said]
    first = dict(answers[0])
    first["host"] = {**first["host"], "workers": [{"worker": seat, **_of_worker(answer)} for seat, answer in said]}
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for seat, answer in said:
        for model in answer["models"]:
            key = (model["name"], model["version"])
            rows[key] = _row(rows.get(key), model, seat)
    first["models"] = [rows[key] for key in sorted(rows)]
    first["totals"] = _counted([answer["totals"] for answer in answers])
    first["events"] = sorted(_tagged(said, "events"), key=lambda event: event["at"])[-len(first["events"]) or None :]
    memory = first["memory"] | _of_all([answer["memory"] for answer in answers])
    first["memory"] = {**memory, "page_cache": {**memory["page_cache"], **_weights(first["models"])}}
    models, activations = (
        sum(answer["bar"][name] for answer in answers) for name in ("models_bytes", "activations_bytes")
    )
    loading = first["bar"]["loading_bytes"]
    first["bar"] = {
        "host_bytes": max(0, first["memory"]["usage_bytes"] - models - activations - loading),
        "models_bytes": models,
        "loading_bytes": loading,
        "activations_bytes": activations,
        "weights_cached_bytes": first["memory"]["page_cache"]["cached_bytes"],
    }
    return first


def merge_history(said: Sequence[Said]) -> Any:
    """Returns the last hour of the host: counts of all processes, sample by sample from the newest one backwards."""
    answers = [answer for _, answer in said]
    length = min(len(answer["at"]) for answer in answers)
    first = {
        name: column[len(column) - length :] if isinstance(column, list) else column
        for name, column in answers[0].items()
    }
    for answer in answers[1:]:
        for name in ("models_bytes", "requests", "failures", "loads", "evictions", "refusals"):
            column = answer[name][len(answer[name]) - length :]
            first[name] = [one + other for one, other in zip(first[name], column, strict=True)]
        column = answer["p99_ms"][len(answer["p99_ms"]) - length :]
        first["p99_ms"] = [_worst(one, other) for one, other in zip(first["p99_ms"], column, strict=True)]
    return first


def merge_metrics(
    said: Sequence[tuple[Seat, str]], label: str = "worker", shared: tuple[str, ...] = _OF_THE_HOST
) -> str:
    """Returns all processes' families in Prometheus' text format, with the process as the label `worker`.

    What all of them read from the same place, such as usage, is there once and without it: families that begin with
    one of `shared`.
    """
    families: dict[str, list[str]] = {}
    heads: dict[str, list[str]] = {}
    for position, (seat, text) in enumerate(said):
        family = ""
        for line in text.splitlines():
            if line.startswith("#"):
                family = line.split(" ", 3)[2]
                head = heads.setdefault(family, [])
                if len(head) < 2 and line not in head:
                    head.append(line)
                families.setdefault(family, [])
            elif family.startswith(shared):
                if position == 0:
                    families[family].append(line)
            elif line:
                families[family].append(_labelled(line, label, seat))
    return "".join(f"{line}\n" for family, lines in families.items() for line in (*heads[family], *lines))


# --- inside --------------------------------------------------------------------------------------


def _labelled(line: str, label: str, seat: Seat) -> str:
    name, brace, rest = line.partition("{")
    if brace and " " not in name:
        return f'{name}{{{label}="{seat}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{{label}="{seat}"}} {value}'


def _tagged(said: Iterable[Said], key: str, label: str = "worker") -> list[dict[str, Any]]:
    return [{**entry, label: seat} for seat, answer in said for entry in answer[key]]


def _of_all(answers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Returns what of the object of `GET /memory` is each process's own, for all of them."""
    activations = [answer["activations"] for answer in answers]
    summed = {name: sum(found[name] for found in activations) for name in ("claimed_bytes", "waiting")}
    return {
        "conditions": list({entry["name"]: entry for answer in answers for entry in answer["conditions"]}.values()),
        "activations": {**activations[0], **summed},
        **{name: sum(answer[name] for answer in answers) for name in ("waiting", "runs_in_flight")},
    }


def _of_worker(answer: Mapping[str, Any]) -> dict[str, Any]:
    loaded = [model for model in answer["models"] if model["committed_bytes"]]
    return {
        "pid": answer["host"]["pid"],
        "uptime_s": answer["host"]["uptime_s"],
        "ready": answer["host"]["ready"],
        "models": len(loaded),
        "models_bytes": answer["bar"]["models_bytes"],
        "requests_per_s": answer["totals"]["requests_per_s"],
        "in_flight": answer["totals"]["in_flight"],
    }


def _row(known: dict[str, Any] | None, model: dict[str, Any], seat: Seat) -> dict[str, Any]:
    """Adds a process's row of a model to what is known of it."""
    workers = [seat] if model["committed_bytes"] else []
    if known is None:
        return {**model, "workers": workers}
    best = min(known, model, key=lambda one: _SHOWN_STATES.get(one["state"], 1))
    used = [one["last_used"] for one in (known, model) if one["last_used"] is not None]
    return {
        **best,
        **_counted([{name: one[name] for name in _COUNTS_OF_MODEL} for one in (known, model)]),
        "pinned": known["pinned"] or model["pinned"],
        "last_used": max(used, default=None),
        "cached_bytes": _worst(known["cached_bytes"], model["cached_bytes"]),
        "weights_bytes": _worst(known["weights_bytes"], model["weights_bytes"]),
        "workers": known["workers"] + workers,
    }


#: Of a model in `GET /monitor`, what adds up.
_COUNTS_OF_MODEL: Final = (
    "committed_bytes",
    "leases",
    "waiting",
    "requests",
    "failures",
    "requests_per_s",
    "p50_ms",
    "p99_ms",
    "loads",
    "evictions",
    "cold_starts",
    "load_seconds",
    "run_seconds",
)

_SHOWN_STATES: Final = {"ready": 0, "UNAVAILABLE": 2}


def _counted(found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds numbers up by name; of times the longest."""
    first = dict(found[0])
    for name, value in first.items():
        values = [one[name] for one in found if one[name] is not None]
        if name.endswith("_ms"):
            first[name] = max(values, default=None)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            first[name] = round(sum(values), 6)
    return first


def _worst(one: Any, other: Any) -> Any:
    return max((value for value in (one, other) if value is not None), default=None)


def _weights(models: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Adds the mapped files up, each model's once: the processes map the same files."""
    files: dict[tuple[str, str], tuple[int, int | None]] = {}
    for model in models:
        if model["weights_bytes"] is not None:
            files[model["name"], model["version"]] = model["weights_bytes"], model["cached_bytes"]
    weights = sum(size for size, _ in files.values())
    known = [cached for _, cached in files.values() if cached is not None]
    cached = sum(known) if len(known) == len(files) else None
    share = None if cached is None or not weights else round(cached / weights, 4)
    return {"weights_bytes": weights, "cached_bytes": cached, "cached_share": share}


def _sum(one: Any, other: Any) -> Any:
    """Adds two models' statistics up, whatever they have."""
    return {name: _joined(name)(value, other[name]) for name, value in one.items()}


def _joined(name: str) -> Callable[[Any, Any], Any]:
    match name:
        case "name" | "version":
            return lambda one, _: one
        case "last_inference":
            return max
        case "batch_stats":
            return _sum_batches
        case "memory_usage":
            return lambda one, other: [
                {**mine, "byte_size": mine["byte_size"] + its["byte_size"]}
                for mine, its in zip(one, other, strict=True)
            ]
    return _sum_values


def _sum_batches(one: Any, other: Any) -> Any:
    found = {batch["batch_size"]: batch for batch in one}
    for batch in other:
        size = batch["batch_size"]
        found[size] = {**_sum_values(found[size], batch), "batch_size": size} if size in found else batch
    return [found[size] for size in sorted(found)]


def _sum_values(one: Any, other: Any) -> Any:
    if isinstance(one, dict):
        return {name: _sum_values(value, other[name]) for name, value in one.items()}
    return one + other


def _by_version(key: tuple[str, str]) -> tuple[str, int, str]:
    return key[0], int(key[1]) if key[1].isdecimal() else 0, key[1]
