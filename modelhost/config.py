"""One frozen settings value, and the only reader of the settings file, `MODELHOST_*` and flags.

Precedence, strongest first: flags, environment, file, defaults. An unknown key anywhere stops the
start and names the nearest valid one; a value that does not parse names the key and what it accepts.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from modelhost.errors import ConfigError
from modelhost.units import ThresholdSpec, parse_duration, parse_size

ENV_PREFIX: Final = "MODELHOST_"
DEFAULT_FILE: Final = Path("modelhost.toml")

#: Variables with our prefix that are no settings: the file's name, the client commands' host, and
#: what asks the tests for their full size.
_OTHER_VARIABLES: Final = {"CONFIG", "URL", "TEST_FULL"}


def _size_or_auto(value: Any) -> Any:
    return value if value == "auto" else parse_size(value)


def _threshold(value: Any) -> Any:
    return value if isinstance(value, ThresholdSpec) else ThresholdSpec.parse(value)


Size = Annotated[int, BeforeValidator(parse_size)]
SizeOrAuto = Annotated[int | Literal["auto"], BeforeValidator(_size_or_auto)]
Threshold = Annotated[ThresholdSpec, BeforeValidator(_threshold)]
PositiveInt = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0)]
Duration = Annotated[float, BeforeValidator(parse_duration)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(_Section):
    """The HTTP surface."""

    host: str = "127.0.0.1"
    """Address to listen on; 127.0.0.1 because the host has no authentication of its own."""
    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    grpc_port: int | None = Field(None, ge=0, le=65535)
    """Port for the same protocol over gRPC, for which the extra `modelhost[grpc]` has to be installed; unset:
    not served, 0 takes a free one."""
    max_request_bytes: SizeOrAuto = "auto"
    """Largest request body, before and after decompression; auto: a sixteenth of the limit, 1 to 64 MB."""
    max_decoding_bytes: SizeOrAuto = "auto"
    """All bodies being received, decoded or answered at one moment; auto: a quarter of the room for activations."""
    run_threads: int = Field(0, ge=0)
    """Inference threads; 0: one for each core."""
    max_connections: PositiveInt = 512
    """Open connections; each may hold 32 KB of headers."""
    max_queue: PositiveInt = 256
    """Requests that may wait for an inference thread; one more is answered 503 `overloaded`."""
    request_timeout_s: Seconds = 120.0
    """Longest time from a request's arrival to its answer; a request may ask for less (`timeout`)."""
    compress_answers: bool = True
    """Answers are compressed where the client asks for gzip or deflate by itself, JSON of 1 KB or more also where
    it lists them among others."""
    receive_timeout_s: Seconds = 10.0
    """Longest pause of a client that is sending a body."""
    shutdown_timeout_s: Seconds = 10.0
    """Time that requests in flight get to finish at shutdown."""


class MemorySettings(_Section):
    """The memory that the host may use, and when it acts."""

    limit: Size | None = None
    """Upper bound; only ever lowers the limit that the kernel sets."""
    warning: Threshold = ThresholdSpec.parse("auto")
    """Idle models leave from here on; auto: 20 MB or 5 % of the limit, whichever is more, below critical."""
    critical: Threshold = ThresholdSpec.parse("auto")
    """Loads are refused from here on; auto: the limit less the room for activations."""
    min_free: Size = parse_size("30MB")
    """Never given to models, whatever the thresholds say."""
    activation_ceiling: SizeOrAuto = "auto"
    """Hard maximum of what all runs together may allocate; auto: the room above critical, at most a quarter
    of the limit."""
    sample_interval_s: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Time between two looks at usage."""
    event_history: PositiveInt = 256
    """Events kept for `GET /memory`; older ones are forgotten."""


class PoolSettings(_Section):
    """Waiting, and patience with what fails."""

    max_waiting: PositiveInt = 512
    """Requests that may wait for models to load; one more is answered 503 `overloaded`."""
    wait_timeout_s: Seconds = 60.0
    """Longest wait of one request for its model."""
    memory_wait_s: Seconds = 5.0
    """How long a load may wait for models in use to become idle before it is refused."""
    load_timeout_s: Seconds = 300.0
    """A load that takes longer is cancelled and counts as failed."""
    failure_backoff_s: Seconds = 1.0
    """A failed load is remembered this long, twice as long after each further failure …"""
    failure_backoff_max_s: Seconds = 60.0
    """… and at most this long."""
    idle_ttl: Duration = 0.0
    """A model that nobody has used for so long leaves, and the pages of its files with it; 0: only memory
    decides. Reloading a prepared model takes a millisecond, so that short times cost little."""


class RuntimeSettings(_Section):
    """ONNX Runtime, process-wide."""

    intra_op_threads: PositiveInt = 1
    """Threads inside one run, shared by all models; on small machines more than 1 costs throughput."""


class BatchingSettings(_Section):
    """Requests for one model that wait at the same time share a run, where its rows are independent."""

    enabled: bool = True
    """Off: every request runs by itself."""
    max_rows: PositiveInt = 64
    """Most rows of a shared run."""
    max_delay: Duration = 0.0
    """How long a request may wait for others to share its run with, at most; 0: only with what has come by then,
    and while all threads are busy."""


class ModelOptions(_Section):
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
    dimensions: dict[str, PositiveInt] = Field(default_factory=dict)
    """Sizes to prepare and measure with, for dimensions of any size: by their name in the model, or as
    `INPUT:AXIS` where they have none."""
    max_batch_size: int = Field(0, ge=0)
    """Told to clients that ask (`/config`); 0: the model has no batch dimension that they may fill."""


class PreloadEntry(_Section):
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


class ModelsSettings(_Section):
    """Which models, and what is special about some of them."""

    directory: Path = Path("models")
    """The model repository."""
    preload: tuple[Annotated[PreloadEntry, BeforeValidator(_preload_entry)], ...] = ()
    """Loaded in this order before the host says it is ready; a name, or a table with `optional`."""
    pinned: tuple[str, ...] = ()
    """Names of models that are never evicted."""
    options: dict[str, ModelOptions] = Field(default_factory=dict)
    """Options by model name."""

    def options_for(self, name: str, own: ModelOptions) -> ModelOptions:
        """Returns a model's own options with these on top, key by key; a name among the pins is pinned."""
        override = self.options.get(name)
        options = own if override is None else own.model_copy(update=override.model_dump(exclude_unset=True))
        if name in self.pinned and not options.pinned:
            options = options.model_copy(update={"pinned": True})
        return options


class PrepareSettings(_Section):
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


class Settings(BaseSettings):
    """All settings. Build it with `load_settings`, or directly in a program that embeds the host."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    server: ServerSettings = ServerSettings()
    memory: MemorySettings = MemorySettings()
    pool: PoolSettings = PoolSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    batching: BatchingSettings = BatchingSettings()
    models: ModelsSettings = ModelsSettings()
    prepare: PrepareSettings = PrepareSettings()

    @property
    def artifact_cache(self) -> Path:
        """Where prepared models lie."""
        return self.prepare.cache or self.artifacts_beside

    @property
    def artifacts_beside(self) -> Path:
        """Where artifacts lie that come with the models; a hidden folder is no model."""
        return self.models.directory / ".modelhost"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leaves only the values passed in: an embedding program's environment is not ours to read.

        `load_settings` merges file, environment and flags first, so that each can name its own keys
        in errors.
        """
        return (init_settings,)


def load_settings(
    *,
    file: Path | None = None,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Reads file, environment and `flags` (dotted keys, None for not given) into one value.

    `file` defaults to `MODELHOST_CONFIG`, then to `modelhost.toml` where there is one.
    Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    if file is None and environ.get(f"{ENV_PREFIX}CONFIG"):
        file = Path(environ[f"{ENV_PREFIX}CONFIG"])
    if file is None and DEFAULT_FILE.is_file():
        file = DEFAULT_FILE
    merged: dict[str, dict[str, Any]] = {}
    if file is not None:
        table = _read_toml(file)
        _build(table, source=str(file))  # alone first: its errors are the file's
        _merge(merged, table)
    _merge(merged, _from_environ(environ))
    given = {key: value for key, value in (flags or {}).items() if value is not None}
    _merge(merged, _nest(given))
    return _build(merged, source="settings")


def parse_model_options(table: Mapping[str, object], *, source: str) -> ModelOptions:
    """Returns the options in one model's table. Raises ConfigError that names `source`."""
    try:
        return ModelOptions.model_validate(dict(table))
    except ValidationError as error:
        raise ConfigError(_explain(error, ModelOptions, source)) from None


def valid_keys() -> dict[str, type[BaseModel]]:
    """Returns every dotted key of the settings, with the section that it belongs to."""
    return {f"{section}.{key}": model for section, model in _sections() for key in model.model_fields}


def _sections() -> Iterator[tuple[str, type[BaseModel]]]:
    for name, field in Settings.model_fields.items():
        section = field.annotation
        assert isinstance(section, type)
        assert issubclass(section, BaseModel)
        yield name, section


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not TOML: {error}") from None


def _from_environ(environ: Mapping[str, str]) -> dict[str, Any]:
    """Maps `MODELHOST_MEMORY_LIMIT` (or `MODELHOST_MEMORY__LIMIT`) to `memory.limit`."""
    names = {key.replace(".", "_").upper(): key for key in valid_keys()}
    found: dict[str, Any] = {}
    for variable, text in environ.items():
        if not variable.startswith(ENV_PREFIX) or _is_no_setting(variable.removeprefix(ENV_PREFIX), text):
            continue
        short = variable.removeprefix(ENV_PREFIX).replace("__", "_")
        if short not in names:
            hint = _nearest(short, names)
            advice = f"; did you mean {ENV_PREFIX}{hint}?" if hint else ""
            raise ConfigError(f"unknown environment variable {variable}{advice}")
        key = names[short]
        try:
            found[key] = _decode_variable(key, text)
            _build(_nest({key: found[key]}), source=variable)
        except ValueError as error:
            raise ConfigError(f"{variable}: {error}") from None
    return _nest(found)


def _is_no_setting(short: str, text: str) -> bool:
    """Says whether a variable with our prefix means something else.

    Kubernetes describes every Service to every container: one that is called `modelhost` sets
    MODELHOST_SERVICE_HOST, MODELHOST_PORT=tcp://…, MODELHOST_PORT_8080_TCP_ADDR and the like.
    """
    if short in _OTHER_VARIABLES or short.startswith("SERVICE_"):
        return True
    return "://" in text if short == "PORT" else re.match(r"PORT_\d+_(TCP|UDP|SCTP)", short) is not None


def _decode_variable(key: str, text: str) -> Any:
    """Returns a list or table from TOML syntax, a list from commas, anything else as the text itself."""
    annotation = valid_keys()[key].model_fields[key.split(".")[1]].annotation
    kind = typing.get_origin(annotation)
    if kind not in (tuple, dict) or isinstance(annotation, types.UnionType):
        return text
    if kind is tuple and not text.lstrip().startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"expected a {'list' if kind is tuple else 'table'} in TOML syntax: {error}") from None


def _nest(dotted: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in dotted.items():
        section, name = key.split(".")
        nested.setdefault(section, {})[name] = value
    return nested


def _merge(into: dict[str, Any], other: Mapping[str, Any]) -> None:
    for section, table in other.items():
        if isinstance(table, Mapping):
            into.setdefault(section, {}).update(table)
        else:
            into[section] = table


def _build(table: Mapping[str, Any], *, source: str) -> Settings:
    try:
        return Settings(**table)
    except ValidationError as error:
        raise ConfigError(_explain(error, Settings, source)) from None


def _explain(error: ValidationError, root: type[BaseModel], source: str) -> str:
    """Says each problem in one line: the key, what was expected, what came, the nearest valid key."""
    lines = []
    for problem in error.errors():
        path = [str(part) for part in problem["loc"] if not str(part).startswith("function-")]
        key = ".".join(path)
        if problem["type"] == "extra_forbidden":
            hint = _nearest_key(path, root)
            lines.append(f"unknown key '{key}'" + (f"; did you mean '{hint}'?" if hint else ""))
        else:
            text = problem["msg"].removeprefix("Value error, ")
            got = problem["input"]
            tail = f", got {got!r}" if not isinstance(got, Mapping) and "got" not in text else ""
            lines.append(f"'{key}': {text}{tail}")
    return f"{source}: " + "; ".join(lines)


def _nearest_key(path: list[str], root: type[BaseModel]) -> str | None:
    """Returns the valid key that an unknown one most likely meant, as it would be written there."""
    if path[:2] == ["models", "options"] and len(path) > 3:
        return _nearest(path[-1], ModelOptions.model_fields)
    if path[:2] == ["models", "preload"] and len(path) > 3:
        return _nearest(path[-1], PreloadEntry.model_fields)
    if root is not Settings:
        return _nearest(path[-1], root.model_fields)
    known = valid_keys() | dict(_sections())
    by_last_word = {key.rsplit(".")[-1]: key for key in known}
    if path[-1] in by_last_word:
        return by_last_word[path[-1]]
    return _nearest(".".join(path), known) or by_last_word.get(_nearest(path[-1], by_last_word) or "")


def _nearest(word: str, known: Mapping[str, Any]) -> str | None:
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return matches[0] if matches else None
