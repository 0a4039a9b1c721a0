"""The secret that signs what the host sends: from a file or the environment, and nowhere else."""

from __future__ import annotations

from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from modelhost.errors import ConfigError
from modelhost.security.private_file import read_private

VARIABLE: Final = "MODELHOST_ALERTS_SECRET"

#: Shorter ones could be guessed by who has seen something signed.
_LEAST_BYTES: Final = 16
_MAX_BYTES: Final = 4096


def take_secret(environ: MutableMapping[str, str]) -> bytes | None:
    """Takes the secret out of the environment, so that no child process inherits it. Raises ConfigError."""
    text = environ.pop(VARIABLE, "")
    return _checked(text.encode(), VARIABLE) if text else None


def read_secret(file: Path) -> bytes:
    """Returns the text of a file without its line end; see `read_private`. Raises ConfigError."""
    data = read_private(file, setting="alerts.secret_file", max_bytes=_MAX_BYTES)
    return _checked(data.strip(), f"alerts.secret_file {file}")


def _checked(secret: bytes, where: str) -> bytes:
    if not _LEAST_BYTES <= len(secret) <= _MAX_BYTES:
        raise ConfigError(f"{where}: a secret has {_LEAST_BYTES} to {_MAX_BYTES} bytes, this one has {len(secret)}")
    return secret
