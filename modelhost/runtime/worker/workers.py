"""All isolated models of a host: loads them, trims them, adds up what they hold."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from modelhost.config import ModelOptions, RuntimeSettings
from modelhost.errors import ConfigError
from modelhost.prepare.footprint import RunFootprint, Term
from modelhost.prepare.processes import private_bytes
from modelhost.runtime.base import CancelToken, Inspection, LoadError, LoadPlan
from modelhost.runtime.worker.footprint import with_transport
from modelhost.runtime.worker.model import IsolatedModel
from modelhost.runtime.worker.nursery import Nursery
from modelhost.runtime.worker.session import WorkerSession

#: What a worker holds beside its model: pages of the template that it has written to, stacks, the messages' buffers.
WORKER_BYTES: Final = 5 << 20
#: What runs may leave in all workers together: one part in so many of the ceiling of all runs. It shows in usage, and
#: is given back before any model has to leave.
_LEFT_PART: Final = 4
#: The template: interpreter, numpy, ONNX Runtime.
TEMPLATE_BYTES: Final = 28 << 20


class Workers:
    """Isolated models. Any thread; `load`, `trim` and the models' `close` are the memory thread's."""

    def __init__(self, settings: RuntimeSettings, *, ceiling_bytes: int) -> None:
        """Starts nothing yet."""
        self._default, self._stop_grace_s = settings.isolation, settings.stop_grace
        self._ceiling_bytes = ceiling_bytes
        self._nursery = Nursery(
            ceiling_bytes=ceiling_bytes,
            intra_op_threads=settings.intra_op_threads,
            custom_op_libraries=settings.custom_op_libraries,
        )
        self._lock = threading.Lock()
        # With what each held when it had loaded, until its process has gone.
        self._sessions: dict[WorkerSession, int] = {}

    def planned(self, inspection: Inspection, options: ModelOptions) -> Inspection:
        """Returns what is known of a model with what a worker adds to it, where it is to live in one.

        Raises LoadError where this system has no workers.
        """
        if (options.isolation or self._default) == "none":
            return inspection
        try:
            check_supported()
        except ConfigError as error:
            raise LoadError(str(error)) from None
        plan = inspection.plan
        if plan is None:
            return inspection
        extra_bytes = WORKER_BYTES + (0 if self._nursery.is_started else TEMPLATE_BYTES)
        # A run of which nobody knows what it takes has all of it: there is no arena that could say no for all.
        run = with_transport(plan.run, inspection) if plan.run else RunFootprint((Term(self._ceiling_bytes),), {})
        plan = replace(
            plan,
            resident_bytes=plan.resident_bytes + WORKER_BYTES,
            peak_bytes=max(plan.peak_bytes, plan.resident_bytes) + extra_bytes,
            run=run,
            is_isolated=True,
        )
        return replace(inspection, plan=plan)

    def warm_up(self) -> None:
        """Starts the template. Raises LoadError."""
        self._nursery.start()

    def load(
        self,
        file: Path,
        plan: LoadPlan,
        inspection: Inspection,
        cancel: CancelToken,
        *,
        mapped: tuple[Path, ...],
        closed: Callable[[], None],
    ) -> IsolatedModel:
        """Has a new worker open a model. Raises LoadError, CannotOpen and WorkerDied; no worker is left then."""
        session = WorkerSession(self._nursery.fork(), stop_grace_s=self._stop_grace_s)
        session.open(file, optimization=plan.optimization, variant=plan.variant, cancel=cancel)

        def ended() -> None:
            if session.worker.has_ended:  # else it still holds what it held
                with self._lock:
                    del self._sessions[session]
                    self._share()
            closed()

        try:
            model = IsolatedModel(session, inspection, plan, mapped, ceiling_bytes=self._ceiling_bytes, closed=ended)
        except BaseException:
            session.close()
            raise
        with self._lock:
            self._sessions[session] = private_bytes(session.worker.pid)
            self._share()
        return model

    def trim(self) -> None:
        """Has all workers that have run since give back what runs have left."""
        for session in self._open():
            session.trim()

    def booked_bytes(self) -> int:
        """Returns what the workers there are held when they had loaded; what runs take since is not in it."""
        with self._lock:
            return sum(self._sessions.values())

    def held_bytes(self) -> int:
        """Returns what workers, template and shared memory hold now. Takes up to a millisecond for each process."""
        return sum([session.shared_bytes() for session in self._open()]) + self._nursery.held_bytes()

    def close(self) -> None:
        """Ends the template; all models are closed."""
        self._nursery.close()

    def _share(self) -> None:
        """Shares out what runs may leave in memory."""
        for session in self._sessions:
            session.kept_bytes = self._ceiling_bytes // _LEFT_PART // len(self._sessions)

    def _open(self) -> tuple[WorkerSession, ...]:
        with self._lock:
            return tuple(self._sessions)


def check_supported() -> None:
    """Raises ConfigError where this system cannot share memory whose size nobody can change afterwards."""
    if sys.platform != "linux" or not hasattr(os, "memfd_create"):
        raise ConfigError(f'isolation = "process" needs Linux and its sealed shared memory; this is {sys.platform}')
