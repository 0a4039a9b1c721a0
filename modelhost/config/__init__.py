"""One frozen settings value, and the only reader of the settings file, `MODELHOST_*` and flags."""

from modelhost.config.alerts import ALERT_KINDS, AlertKind, AlertsSettings
from modelhost.config.loading import load_settings, parse_model_options, valid_keys
from modelhost.config.logs import LoggingSettings
from modelhost.config.memory import BatchingSettings, MemorySettings, PoolSettings, RuntimeSettings
from modelhost.config.metrics import MetricsSettings
from modelhost.config.models import ModelOptions, ModelsSettings, PreloadEntry, PrepareSettings
from modelhost.config.repository import RepositorySettings
from modelhost.config.security import SecuritySettings
from modelhost.config.server import ServerSettings
from modelhost.config.settings import Settings
from modelhost.config.state import StateSettings
from modelhost.config.toml import parse_toml
from modelhost.config.tracing import TracingSettings
from modelhost.config.versions import VersionPolicy

__all__ = [
    "ALERT_KINDS",
    "AlertKind",
    "AlertsSettings",
    "BatchingSettings",
    "LoggingSettings",
    "MemorySettings",
    "MetricsSettings",
    "ModelOptions",
    "ModelsSettings",
    "PoolSettings",
    "PreloadEntry",
    "PrepareSettings",
    "RepositorySettings",
    "RuntimeSettings",
    "SecuritySettings",
    "ServerSettings",
    "Settings",
    "StateSettings",
    "TracingSettings",
    "VersionPolicy",
    "load_settings",
    "parse_model_options",
    "parse_toml",
    "valid_keys",
]
