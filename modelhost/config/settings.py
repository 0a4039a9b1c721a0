"""One frozen settings value."""

from __future__ import annotations

from pathlib import Path

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from modelhost.config.alerts import AlertsSettings
from modelhost.config.logs import LoggingSettings
from modelhost.config.memory import BatchingSettings, MemorySettings, PoolSettings, RuntimeSettings
from modelhost.config.metrics import MetricsSettings
from modelhost.config.models import ModelsSettings, PrepareSettings
from modelhost.config.repository import RepositorySettings
from modelhost.config.security import SecuritySettings
from modelhost.config.server import ServerSettings
from modelhost.config.state import StateSettings
from modelhost.config.tracing import TracingSettings


class Settings(BaseSettings):
    """All settings. Build it with `load_settings`, or directly in a program that embeds the host."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid")

    server: ServerSettings = ServerSettings()
    security: SecuritySettings = SecuritySettings()
    logging: LoggingSettings = LoggingSettings()
    metrics: MetricsSettings = MetricsSettings()
    alerts: AlertsSettings = AlertsSettings()
    tracing: TracingSettings = TracingSettings()
    memory: MemorySettings = MemorySettings()
    pool: PoolSettings = PoolSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    batching: BatchingSettings = BatchingSettings()
    models: ModelsSettings = ModelsSettings()
    repository: RepositorySettings = RepositorySettings()
    prepare: PrepareSettings = PrepareSettings()
    state: StateSettings = StateSettings()

    @property
    def artifact_cache(self) -> Path:
        """Where prepared models lie."""
        return self.prepare.cache or self.artifacts_beside

    @property
    def artifacts_beside(self) -> Path:
        """Where artifacts lie that come with the models; a hidden folder is no model."""
        return self.models.directory / ".modelhost"

    @property
    def state_directory(self) -> Path:
        """Where the host keeps what it has counted."""
        return self.state.directory or self.artifact_cache / "state"

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
