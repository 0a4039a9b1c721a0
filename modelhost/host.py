"""Builds everything from settings, opens and closes it in order; has no other verbs.

async with Host(settings) as host:
    async with host.pool.lease("digits") as lease:
        answer = await lease.run({"image": pixels})
    print(host.memory.memory_info())
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelhost.care import MEMORY_CRITICAL, Care
from modelhost.conditions import Conditions
from modelhost.config import ServerSettings, Settings
from modelhost.errors import ConfigError, HeldElsewhere, HostClosed, HostStarting, ModelHostError, Overloaded
from modelhost.memory import MemoryManager, MemoryProbe, Probe, allocator
from modelhost.memory.board import Seat, Siblings, most_of
from modelhost.memory.thresholds import Thresholds, resolve
from modelhost.outlook import Outlook
from modelhost.pool import Pool, Runner
from modelhost.pool.keeper import Keeper, StatisticsKeeper, statistics_file
from modelhost.repository import Repository
from modelhost.runtime.base import Runtime
from modelhost.threads import cores
from modelhost.units import format_bytes

if TYPE_CHECKING:  # most hosts have fixed thresholds, and need not hold these
    from modelhost.adaptation import Adaptation
    from modelhost.memory.adaptive_words import Guards

log = logging.getLogger("modelhost")

_MB = 1 << 20


@dataclass(frozen=True, slots=True)
class Budgets:
    """How the room above critical is shared, in bytes.

    At 256 MB the room is 64 MB. Activations may take all of it: a run looks at usage before it begins.
    Bodies being decoded may take 16 MB.
    """

    activation_ceiling_bytes: int
    decoding_bytes: int
    request_bytes: int

    @classmethod
    def resolve(cls, settings: Settings, *, limit_bytes: int, usage_bytes: int) -> Budgets:
        """Fills in what the settings leave to us. Raises ConfigError where thresholds are impossible."""
        thresholds = resolve(settings.memory, limit_bytes=limit_bytes, baseline_bytes=usage_bytes)
        room = min(thresholds.activation_room_bytes, limit_bytes // 4)
        server, memory = settings.server, settings.memory
        decoding = room // 4 if server.max_decoding_bytes == "auto" else server.max_decoding_bytes
        request = (
            max(_MB, min(limit_bytes // 16, 64 * _MB, decoding - decoding // 4))
            if server.max_request_bytes == "auto"
            else server.max_request_bytes
        )
        ceiling = room if memory.activation_ceiling == "auto" else memory.activation_ceiling
        for name, size in (("memory.activation_ceiling", ceiling), ("server.max_decoding_bytes", decoding)):
            if size > thresholds.activation_room_bytes:
                raise ConfigError(
                    f"{name} ({format_bytes(size)}) cannot be over the "
                    f"{format_bytes(thresholds.activation_room_bytes)} between memory.critical "
                    f"({format_bytes(thresholds.critical_bytes)}) and the limit ({format_bytes(limit_bytes)})"
                )
        if ceiling < _MB:
            raise ConfigError(f"memory.activation_ceiling ({format_bytes(ceiling)}) has to be at least 1 MB")
        if request > decoding:
            raise ConfigError(
                f"server.max_request_bytes ({format_bytes(request)}) cannot be over "
                f"server.max_decoding_bytes ({format_bytes(decoding)})"
            )
        return cls(ceiling, decoding, request)

    def shared_by(self, seats: int) -> Budgets:
        """Returns these for a host of so many processes, of which each may use nearly all of them."""
        if seats == 1:
            return self
        most = most_of(self.decoding_bytes, seats)
        return replace(self, request_bytes=min(self.request_bytes, most - most // 4))

    def within(self, thresholds: Thresholds) -> Budgets:
        """Returns what is left of these where the limit was lowered while the host runs, `thresholds` being the fixed
        ones under it; never more than these."""
        room = min(thresholds.activation_room_bytes, thresholds.limit_bytes // 4)
        decoding = min(self.decoding_bytes, room // 4)
        return Budgets(
            activation_ceiling_bytes=min(self.activation_ceiling_bytes, room),
            decoding_bytes=decoding,
            request_bytes=min(self.request_bytes, max(_MB, decoding - decoding // 4)),
        )


RuntimeFactory = Callable[[Settings, Budgets], Runtime]


def onnx_runtime(settings: Settings, budgets: Budgets, conditions: Conditions | None = None) -> Runtime:
    """Makes the ONNX Runtime runtime; it can be set up once in a process."""
    from modelhost.prepare import ArtifactStore
    from modelhost.runtime.ort import OrtRuntime, identity  # the heavy import belongs to hosts that run models
    from modelhost.runtime.preparing import Preparer
    from modelhost.runtime.worker.workers import Workers, check_supported

    if settings.runtime.isolation == "process":
        check_supported()
    models, made_for = settings.models.directory, identity(settings.runtime.custom_op_libraries)
    store = ArtifactStore(settings.artifact_cache, models, made_for)
    came_along = settings.artifacts_beside
    beside = ArtifactStore(came_along, models, made_for) if came_along != store.cache else None
    return OrtRuntime(
        preparer=Preparer(store, settings.prepare, beside=beside, conditions=conditions),
        activation_ceiling_bytes=budgets.activation_ceiling_bytes,
        intra_op_threads=settings.runtime.intra_op_threads,
        custom_op_libraries=settings.runtime.custom_op_libraries,
        workers=Workers(settings.runtime, ceiling_bytes=budgets.activation_ceiling_bytes),
    )


class Host:
    """A model host, open while its context is. All of it belongs to one event loop."""

    memory: MemoryManager
    pool: Pool
    runtime: Runtime
    budgets: Budgets

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        runtime_factory: RuntimeFactory | None = None,
        probe: MemoryProbe | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        self.settings = settings or Settings()
        self.siblings = siblings or Siblings()
        """The other processes of a host that is several."""
        self.is_accepting = False
        """Whether new work is taken: not before what is to be loaded first has been, and not while draining."""
        self.is_draining = False
        self.on_reload: list[Callable[[], None]] = []
        """Called at a reload, on the disk thread; may raise ConfigError, and then leave things as they were."""
        self.conditions = Conditions()
        """What is not as it should be while the host serves on."""
        self._budget_listeners: list[Callable[[Budgets], None]] = []
        self._keeper: StatisticsKeeper | None = None
        self._adaptation: Adaptation | None = None
        self._learnt_keeper: Keeper | None = None
        self._runtime_factory = runtime_factory or partial(onnx_runtime, conditions=self.conditions)
        self._probe = probe
        self._care: Care | None = None

    async def __aenter__(self) -> Host:
        """Opens, and preloads. Raises ConfigError."""
        await self.open()
        try:
            await self.preload()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Closes."""
        await self.close()

    async def open(self) -> None:
        """Opens: allocator, limits, runtime, repository, baseline, sampler. Raises ConfigError.

        Then it can be asked, and takes no work before `preload`.
        """
        settings = self.settings
        allocator.configure()
        probe = self._probe or Probe(settings.memory.limit)
        budgets = Budgets.resolve(settings, limit_bytes=probe.limit_bytes, usage_bytes=probe.usage().usage_bytes)
        self.budgets = budgets.shared_by(self.siblings.seats)
        self.runtime = self._runtime_factory(settings, self.budgets)
        self.memory = MemoryManager(settings.memory, probe=probe, conditions=self.conditions, siblings=self.siblings)
        self.memory.add_trimmer(self.runtime.trim)
        self.memory.read_workers, self.memory.read_booked = self.runtime.workers_bytes, self.runtime.booked_bytes
        repository = Repository(settings.models.directory, settings.models.name)
        self.pool = Pool(
            repository=repository,
            runtime=self.runtime,
            memory=self.memory,
            runner=_runner(settings.server),
            activation_ceiling_bytes=self.budgets.activation_ceiling_bytes,
            settings=settings.pool,
            models=settings.models,
            batching=settings.batching,
        )
        self.memory.on_thresholds(partial(self._follow_thresholds, self.budgets, probe.limit_bytes))
        try:
            self.pool.runner.add_thread()
            await self.pool.catalog.scan()
            self._report_problems()
            await self._restore_statistics()
            if self.pool.catalog.has_isolated(self.settings.runtime.isolation):
                await self.pool.catalog.on_disk(self.runtime.warm_up)
            # What start-up has left behind is not the baseline.
            gc.collect()
            await self.memory.trim()
            await self.memory.meet()
            self.memory.set_baseline()
            if settings.memory.policy == "adaptive":
                await self._adapt()
            self.memory.start()
        except BaseException:
            await self.close()
            raise
        self._care = Care(self.settings, self.memory, self.pool, self.conditions)
        self._care.start()

    async def close(self) -> None:
        """Closes, in the opposite order; harmless when closed."""
        self.drain()
        if self._care is not None:
            await self._care.stop()
        for keeper in (self._keeper, self._learnt_keeper):
            if keeper is not None:
                await keeper.stop()
        await self.pool.close()
        if self._keeper is not None:
            self._keeper.finish()
        if self._learnt_keeper is not None and self._adaptation is not None:
            self._learnt_keeper.finish(self._adaptation.rows())
        await self.memory.close()
        self.runtime.close()

    def on_budgets(self, listener: Callable[[Budgets], None]) -> None:
        """Calls `listener` with the new budgets where the memory limit was changed while the host runs."""
        self._budget_listeners.append(listener)

    def _follow_thresholds(self, at_start: Budgets, limit_bytes: int, thresholds: Thresholds) -> None:
        """Budgets go down with the limit, and up again to what they were at the start: the arena's own ceiling,
        which can be set once in a process, and what clients were told. Under the same limit they stay, whatever
        thresholds are learnt, but for what is kept free for runs."""
        fixed = self.memory.fixed_thresholds
        budgets = (
            at_start if fixed.limit_bytes == limit_bytes else at_start.within(fixed).shared_by(self.siblings.seats)
        )
        kept_bytes = None
        if thresholds.activation_room_bytes < fixed.activation_room_bytes:
            kept_bytes = max(_MB, thresholds.activation_room_bytes - budgets.decoding_bytes)
        self.pool.activations.resize(budgets.activation_ceiling_bytes, kept_bytes)
        if budgets != self.budgets:
            self.budgets = budgets
            for listener in self._budget_listeners:
                listener(budgets)

    async def _adapt(self) -> None:
        """Has the thresholds follow what is learnt, and what a host before this one has learnt."""
        from modelhost.adaptation import Adaptation, policy_file

        state, rows = self.settings.state, None
        if state.keep_learnt:
            keeper = self._learnt_keeper = Keeper(
                policy_file(self.settings.state_directory),
                self._collect_learnt,
                self.pool.catalog,
                interval_s=state.interval_s,
                conditions=self.conditions,
            )
            rows = await keeper.read()
            keeper.start()
        self._adaptation = Adaptation(self.memory, self.pool, self._guards, rows=rows)
        self._adaptation.start()

    async def _collect_learnt(self) -> list[bytes]:
        return [] if self._adaptation is None else self._adaptation.rows()

    def _guards(self) -> Guards:
        """Returns what holds whatever is learnt; thresholds that the user has set are the highest then."""
        from modelhost.memory.adaptive_words import Guards

        fixed, memory = self.memory.fixed_thresholds, self.settings.memory
        return Guards(
            fixed,
            bodies_bytes=self.budgets.decoding_bytes,
            runs_bytes=self.budgets.activation_ceiling_bytes,
            highest_warning_bytes=None if memory.warning.kind == "auto" else fixed.warning_bytes,
            highest_critical_bytes=None if memory.critical.kind == "auto" else fixed.critical_bytes,
        )

    async def _restore_statistics(self) -> None:
        state = self.settings.state
        if state.keep_statistics:
            self._keeper = StatisticsKeeper(
                self.pool.statistics,
                statistics_file(self._state_directory),
                self.pool.catalog,
                interval_s=state.interval_s,
                conditions=self.conditions,
            )
            await self._keeper.restore()
            self._keeper.start()

    @property
    def _state_directory(self) -> Path:
        """Each process keeps totals of its own, which add up."""
        directory, siblings = self.settings.state_directory, self.siblings
        return directory / f"process-{siblings.number}" if isinstance(siblings, Seat) and siblings.number else directory

    @property
    def outlook(self) -> Outlook | None:
        """What is expected of memory; None where the host is not open."""
        return None if self._care is None else self._care.outlook

    @property
    def policy(self) -> dict[str, Any] | None:
        """What adaptive thresholds are, why, and within what, for JSON; None where thresholds are fixed."""
        return None if self._adaptation is None else self._adaptation.as_dict()

    @property
    def is_ready(self) -> bool:
        """Whether work should be sent here: it is taken, and memory is not beyond what can be helped."""
        return self.is_accepting and not self.conditions.holds(MEMORY_CRITICAL)

    def drain(self) -> None:
        """Takes no new work from here on; what has begun goes on. Any thread, and a signal's handler."""
        self.is_draining, self.is_accepting = True, False

    def check_accepting(self) -> None:
        """Raises HostClosed or HostStarting where no new work is taken."""
        if self.is_draining:
            raise HostClosed("the host is shutting down")
        if not self.is_accepting:
            raise HostStarting("the host is starting: it loads what models.preload names")

    async def reload(self, settings: Settings | None = None) -> None:
        """Has what may change while the host runs read again: keys, models' options and settings, the directory.

        Of `settings`, models' and `memory.limit` are taken over. What cannot be read stays as it was, and is logged.
        """
        for call in self.on_reload:
            try:
                await self.pool.catalog.on_disk(call)
            except ConfigError as error:
                log.error("not reloaded: %s", error)
        if settings is not None:
            self.pool.catalog.use(settings.models)
            try:
                self.memory.use_limit(settings.memory.limit)
            except ConfigError as error:
                log.error("not reloaded: %s", error)
        try:
            await self.pool.catalog.scan()
        except (ConfigError, Overloaded) as error:
            log.error("not reloaded: %s", error)
        else:
            self._report_problems()

    async def preload(self) -> None:
        """Loads what the settings want loaded first, and takes work from then on. Raises ConfigError."""
        for entry in self.settings.models.preload:
            try:
                loaded = await self.pool.load(entry.name, entry.version)
            except HeldElsewhere:
                log.info("preloaded %s in another process of the host: it does not fit twice", entry.name)
            except ModelHostError as error:
                if not entry.optional:
                    raise ConfigError(f"models.preload: '{entry.name}' could not be loaded: {error}") from error
                log.warning("optional preload '%s' could not be loaded: %s", entry.name, error)
            else:
                log.info("preloaded %s:%s, %s", loaded.name, loaded.version, format_bytes(loaded.committed_bytes))
        self.is_accepting = not self.is_draining
        if isinstance(self.siblings, Seat):
            self.siblings.board.has_served = True

    def _report_problems(self) -> None:
        for name, reason in self.pool.catalog.problems.items():
            log.warning("model '%s' is not served: %s", name, reason)
        names = set(self.pool.catalog.names)
        for name in self.settings.models.pinned:
            if name not in names:
                log.warning("models.pinned names '%s', which is not in the repository", name)
        for name in self.settings.models.options:
            if name not in names:
                log.warning("models.options names '%s', which is not in the repository", name)


def _runner(server: ServerSettings) -> Runner:
    per_model = server.max_queue_per_model
    return Runner(
        threads=server.run_threads or cores(),
        max_waiting=server.max_queue,
        max_waiting_per_model=None if per_model == "auto" else per_model,
    )
