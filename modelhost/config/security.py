"""Settings of who may do what."""

from __future__ import annotations

from pathlib import Path

from modelhost.config.fields import Section


class SecuritySettings(Section):
    """API keys. Without any, everybody who can reach the host may do everything."""

    keys_file: Path | None = None
    """File with the keys that are accepted, one a line, as `modelhost keys new` prints it; unset: only those of the
    environment variable MODELHOST_API_KEYS, and without that one no key is asked for."""
    insecure: bool = False
    """Listen where other machines can reach the host without asking for keys (`--insecure`)."""
