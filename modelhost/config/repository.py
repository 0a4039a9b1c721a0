"""Settings of how the host learns what has changed on disk."""

from __future__ import annotations

from modelhost.config.fields import PositiveDuration, Section


class RepositorySettings(Section):
    """Looking at the models' directory while the host runs."""

    watch: bool = False
    """Looks for new, changed and removed models by itself; else when it is told to (SIGHUP, `POST
    /v2/repository/index`), and for a model that it does not know."""
    watch_interval: PositiveDuration = 2.0
    """Time between two looks; more where one takes over a twentieth of that."""
