"""Settings of models: which there are, their options, how they are prepared."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from modelhost.config.fields import Isolation, PositiveInt, Seconds, Section, Size, SizeOrAuto
from modelhost.config.versions import VersionPolicy, Versions


class ModelOptions(Section):
    """Settings of one model: `model.toml` beside it, or `[models.options.NAME]`, which wins key by key."""

    pinned: bool = False
    """Never evicted to make room."""
    optimization: Literal["all", "extended", "basic", "none"] | None = None
    """Graph optimisation; unset: `all`, or `extended` where only its lower load peak fits."""
    load_peak_bytes: Size | None = None
    """Replaces the estimate of what the child process takes that opens the model for the first time."""
    read_ahead: bool = False
    """Asks the kernel to read the weights of a prepared model at its load, not page by page at its first run;
    pays on disks that are slow to seek."""
    batching: bool | None = None
    """Whether requests may share a run; unset: where preparing the model has proved that its rows are independent."""
    isolation: Isolation | None = None
    """`process`: it lives in a worker process of its own; `none`: in the host; unset: as `runtime.isolation` says."""
    dimensions: dict[str, PositiveInt] = Field(default_factory=dict)
    """Sizes to prepare and measure with, for dimensions of any size: by their name in the model, or as
    `INPUT:AXIS` where they have none."""
    version_policy: Versions | None = None
    """Which versions are served: "all", {latest = 2} or {specific = [1, 3]}; unset: as in `models.version_policy`."""
    max_concurrency: PositiveInt | None = None
    """Runs at once, at most; unset: all threads, but where runs take long (20 ms) and others are in use, one thread
    less."""
    max_queue: PositiveInt | None = None
    """Requests that may wait for it, in each queue; unset: `server.max_queue_per_model`."""
    max_batch_size: int = Field(0, ge=0)
    """Told to clients that ask (`/config`); 0: the model has no batch dimension that they may fill."""


class PreloadEntry(Section):
    """A model to load before the host says it is ready."""

    name: str
    version: str | None = None
    optional: bool = False
    """A failure is reported and does not stop the start."""

    @field_validator("version", mode="before")
    @classmethod
    def _digits(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) else value


def _preload_entry(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class ModelsSettings(Section):
    """Which models, and what is special about some of them."""

    directory: Path = Path("models")
    """The model repository."""
    name: str | None = None
    """What the model is called where the directory is that of one: `model.onnx`, or folders of versions, or any one
    .onnx file, lies directly in it. Else the names are those of its folders and files."""
    preload: tuple[Annotated[PreloadEntry, BeforeValidator(_preload_entry)], ...] = ()
    """Loaded in this order before the host says it is ready; a name, or a table with `optional`."""
    pinned: tuple[str, ...] = ()
    """Names of models that are never evicted."""
    options: dict[str, ModelOptions] = Field(default_factory=dict)
    """Options by model name."""
    version_policy: Versions = VersionPolicy()
    """Which versions of models are served that do not say so themselves; see the option of that name."""

    @field_validator("name")
    @classmethod
    def _nameable(cls, value: str | None) -> str | None:
        if value is not None and (not value or not value.isprintable() or "/" in value):
            raise ValueError("expected a name that can be printed, without slashes")
        return value

    def options_for(self, name: str, own: ModelOptions) -> ModelOptions:
        """Returns a model's own options with these on top, key by key; a name among the pins is pinned."""
        override = self.options.get(name)
        options = (
            own
            if override is None
            else own.model_copy(update={key: getattr(override, key) for key in override.model_fields_set})
        )
        if name in self.pinned and not options.pinned:
            options = options.model_copy(update={"pinned": True})
        return options


class PrepareSettings(Section):
    """Prepared models: optimised, their weights as pages of a file (`modelhost prepare`)."""

    on_load: bool = True
    """Prepare a model when it is first wanted; off, or where the cache cannot be written, it is only measured."""
    cache: Path | None = None
    """Where artifacts lie; unset: `.modelhost` in the models' directory."""
    cache_max_bytes: SizeOrAuto = "auto"
    """Largest size of all artifacts together, those in use aside: the least recently used go first; auto: half
    of what the disk has free, the artifacts counted as free."""
    timeout_s: Seconds = 600.0
    """Longest time that preparing one model may take."""
    memory_ceiling: SizeOrAuto = "auto"
    """What preparing one model may take; auto: what is free of the memory limit, less `memory.min_free`."""
