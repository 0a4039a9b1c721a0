"""A model's first run, before it takes the place of one that serves."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import numpy as np

from modelhost.config import ModelOptions
from modelhost.errors import (
    DeadlineExceeded,
    HostClosed,
    ModelBroken,
    ModelHostError,
    RunFailed,
    WorkerCrashed,
    WorkerRestarting,
)
from modelhost.pool.lease import Lease
from modelhost.pool.slot import Slot, SlotState
from modelhost.pool.statistics import ModelStatistics
from modelhost.pool.table import SlotTable
from modelhost.tensors import DTYPES, Array, TensorSpec

#: A run that takes longer is no reason to serve what it is a run of.
_TRIAL_S: Final = 60.0

#: Dimensions of an input that does not state its rank.
_RANK_TRIED: Final = 2


class Trial:
    """Runs loaded models once, on made-up inputs. Event-loop thread; the runs are on inference threads.

    The child has found out already that a model runs at all. This is about the session in this process,
    and it has the pages of its weights read before the first request needs them.
    """

    def __init__(self, table: SlotTable) -> None:
        self._table = table

    async def fails(self, slot: Slot) -> ModelHostError | None:
        """Returns why a loaded slot should not serve; None where nothing speaks against it.

        Made-up inputs may be wrong for a model, so a failed run counts where what it replaces runs on them.
        """
        assert slot.model is not None
        feeds = made_up(slot.model.inputs, slot.options)
        error = await self._run(slot, feeds)
        if isinstance(error, DeadlineExceeded):
            return ModelBroken(slot.key.name, slot.key.version, f"its first run took more than {_TRIAL_S:g} s")
        if isinstance(error, WorkerCrashed | WorkerRestarting):
            return ModelBroken(slot.key.name, slot.key.version, f"its first run: {error}")
        if not isinstance(error, RunFailed):
            return None
        former = slot.predecessor
        if former is None or former.state is not SlotState.READY or former.model is None:
            return None
        if former.model.inputs != slot.model.inputs:
            return None
        lease = self._table.grant(former)
        try:
            await lease.run_checked(feeds, tuple(former.model.outputs), _nothing, deadline=_deadline())
        except ModelHostError:
            return None
        finally:
            lease.end()
        return ModelBroken(slot.key.name, slot.key.version, f"its first run failed: {error}")

    async def _run(self, slot: Slot, feeds: Mapping[str, Array]) -> ModelHostError | None:
        """Runs; returns the error, when the run is over whatever became of the wait for it."""
        assert slot.model is not None
        ended = asyncio.get_running_loop().create_future()
        lease = Lease(self._table.runs(slot, ModelStatistics()), release=lambda: ended.set_result(None))
        try:
            await lease.run_checked(feeds, tuple(slot.model.outputs), _nothing, deadline=_deadline())
        except HostClosed:
            return None
        except ModelHostError as error:
            return error
        except Exception as error:
            return RunFailed(f"{type(error).__name__}: {error}")
        finally:
            lease.end()
            await ended
        return None


def made_up(specs: Mapping[str, TensorSpec], options: ModelOptions) -> dict[str, Array]:
    """Returns inputs of ones, their free dimensions as the options say, or 1."""
    return {name: _ones(spec, options.dimensions) for name, spec in specs.items()}


def _ones(spec: TensorSpec, sizes: Mapping[str, int]) -> Array:
    dims = spec.shape if spec.shape is not None else (-1,) * _RANK_TRIED
    symbols = spec.dim_names if len(spec.dim_names) == len(dims) else ("",) * len(dims)
    shape = [
        size if size >= 0 else sizes.get(symbol) or sizes.get(f"{spec.name}:{axis}") or 1
        for axis, (size, symbol) in enumerate(zip(dims, symbols, strict=True))
    ]
    dtype = DTYPES[spec.datatype]
    if dtype.kind == "O":
        return np.full(shape, "1", object)
    return np.zeros(shape, dtype) if dtype.kind == "V" else np.ones(shape, dtype)


def _nothing(results: list[Array]) -> None:
    """Wants nothing of the outputs."""


def _deadline() -> float:
    return asyncio.get_running_loop().time() + _TRIAL_S
