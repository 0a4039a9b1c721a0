"""The samples that each model has: of those used last, as many as the settings want. Event-loop thread."""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, NamedTuple

from modelhost.api import families as f
from modelhost.api.exposition import Family, Page, quoted
from modelhost.memory import Weights, WeightsInCache
from modelhost.pool import ModelInfo, ModelKey, Pool
from modelhost.pool.accounts import Account
from modelhost.pool.statistics import REASONS, Sums

#: Models that are looked at in one turn of the event loop for who was used last: some 0.3 ms.
_LOOKED_AT_A_TURN: Final = 1000

_NO_FAILURES: Final = (0,) * len(REASONS)


class Shown(NamedTuple):
    """One model: the text of its labels, and what there is to say of it."""

    labels: str
    sums: Sums
    failures: Sequence[int]
    account: Account
    committed_bytes: int
    last_used: float
    weights: Weights | None
    pending: int
    load_s: float | None


#: Families of one sample for each model, and where its value is.
_COUNTS: Final[tuple[tuple[Family, Callable[[Shown], float]], ...]] = (
    (f.MODEL_LOADS, lambda model: model.account.loads),
    (f.MODEL_LOAD_SECONDS, lambda model: model.account.load_seconds),
    (f.MODEL_EVICTIONS, lambda model: model.account.evictions),
    (f.MODEL_COLD_STARTS, lambda model: model.account.cold_starts),
    (f.MODEL_LAST_USED, lambda model: model.last_used),
    (f.NV_SUCCESS, lambda model: model.sums.success),
    (f.NV_COUNT, lambda model: model.sums.inferences),
    (f.NV_EXEC_COUNT, lambda model: model.sums.executions),
    (f.NV_REQUEST_US, lambda model: model.sums.request_ns // 1000),
    (f.NV_QUEUE_US, lambda model: model.sums.queue_ns // 1000),
    (f.NV_INPUT_US, lambda model: model.sums.input_ns // 1000),
    (f.NV_INFER_US, lambda model: model.sums.infer_ns // 1000),
    (f.NV_OUTPUT_US, lambda model: model.sums.output_ns // 1000),
    (f.NV_PENDING, lambda model: model.pending),
)


async def used_last(asked: Sequence[ModelKey], answered_at: Callable[[ModelKey], int], at_most: int) -> list[ModelKey]:
    """Returns the models that answered last, the last one first; others have a turn of the event loop meanwhile."""
    best: list[ModelKey] = []
    for start in range(0, len(asked), _LOOKED_AT_A_TURN):
        if start:
            await asyncio.sleep(0)
        best = heapq.nlargest(at_most, (*best, *asked[start : start + _LOOKED_AT_A_TURN]), key=answered_at)
    return best


async def add_models(page: Page, shown: Sequence[Shown]) -> None:
    """Adds the samples of models; others have a turn of the event loop after each family."""
    for family, samples in _families(shown):
        page.labelled(family, samples)
        await asyncio.sleep(0)


def look(
    pool: Pool,
    loaded: Sequence[ModelInfo],
    asked: Iterable[ModelKey],
    weights: WeightsInCache[ModelKey],
    at_most: int,
) -> list[Shown]:
    """Returns what there is to say of up to `at_most` models: of those of `loaded` before those of `asked`."""
    committed: Counter[ModelKey] = Counter()
    last_used: dict[ModelKey, float] = {}
    for model in sorted(loaded, key=_used_at, reverse=True):
        key = ModelKey(model.name, model.version)
        committed[key] += model.committed_bytes  # one that is being replaced is there twice
        last_used.setdefault(key, _used_at(model))
    keys = list(dict.fromkeys((*last_used, *asked)))[:at_most]
    return [_shown(pool, key, committed[key], last_used.get(key), weights.models.get(key)) for key in keys]


def _families(shown: Sequence[Shown]) -> Iterator[tuple[Family, list[tuple[str, float]]]]:
    yield f.MODEL_COMMITTED, [(model.labels, model.committed_bytes) for model in shown if model.committed_bytes]
    mapped = [(model.labels, model.weights) for model in shown if model.weights is not None]
    yield f.MODEL_WEIGHTS, [(labels, weights.weights_bytes) for labels, weights in mapped]
    yield (
        f.MODEL_CACHED,
        [(labels, weights.cached_bytes) for labels, weights in mapped if weights.cached_bytes is not None],
    )
    for family, value in _COUNTS:
        yield family, [(model.labels, value(model)) for model in shown]
    yield (
        f.NV_FAILURE,
        [
            (f'{model.labels},reason="{reason}"', count)
            for model in shown
            for reason, count in zip(REASONS, model.failures, strict=True)
        ],
    )
    yield f.NV_LOAD_SECS, [(model.labels, model.load_s) for model in shown if model.load_s is not None]


def _shown(pool: Pool, key: ModelKey, committed_bytes: int, last_used: float | None, weights: Weights | None) -> Shown:
    found = pool.statistics.get(key)
    if last_used is None:
        last_used = 0.0 if found is None else found.last_inference_ms / 1e3
    return Shown(
        labels=f"model={quoted(key.name)},version={quoted(key.version)}",
        sums=pool.statistics.since_start(key),
        failures=_NO_FAILURES if found is None or found.failures is None else tuple(found.failures),
        account=pool.accounts.get(key),
        committed_bytes=committed_bytes,
        last_used=last_used,
        weights=weights,
        pending=pool.pending(key),
        load_s=pool.load_seconds(key),
    )


def _used_at(model: ModelInfo) -> float:
    return model.last_used or 0.0
