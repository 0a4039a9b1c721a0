"""The keys in force: from a file, which may be read again, and from the environment, once."""

from __future__ import annotations

import hmac
import logging
from collections.abc import MutableMapping
from pathlib import Path
from typing import Final

from modelhost.config import SecuritySettings
from modelhost.errors import ConfigError
from modelhost.security.keys import Key, digest_of, is_long_enough, parse_file, parse_variable, unambiguous
from modelhost.security.private_file import read_private

log = logging.getLogger("modelhost")

#: Holds keys as they are: `NAME:ROLE[,ROLE...]:KEY`, with spaces between.
VARIABLE: Final = "MODELHOST_API_KEYS"

#: A key takes about 100 bytes, and each of them a comparison for each request.
_MAX_FILE_BYTES: Final = 1 << 20


class KeyRing:
    """The keys in force. `find` from any thread; `reload` puts others in place in one step."""

    def __init__(self, file: Path | None, fixed: tuple[Key, ...] = ()) -> None:
        """Reads the file, where there is one. Raises ConfigError."""
        self._file, self._fixed = file, fixed
        self._keys = self._read()

    @classmethod
    def of(cls, settings: SecuritySettings, fixed: tuple[Key, ...] = ()) -> KeyRing | None:
        """Returns the keys of the settings with those that are `fixed`; None where no keys are configured.

        Raises ConfigError.
        """
        return cls(settings.keys_file, fixed) if settings.keys_file is not None or fixed else None

    def find(self, credential: bytes) -> Key | None:
        """Returns the key that was sent, None for any other text.

        Every key is compared, and all of its SHA-256: how long this takes tells nothing of any of them.
        """
        if not is_long_enough(credential):
            return None
        digest, found = digest_of(credential), None
        for key in self._keys:
            if hmac.compare_digest(key.digest, digest):
                found = key
        return found

    def reload(self) -> None:
        """Reads the file again; who uses a key that has gone is refused from the next request on.

        Raises ConfigError, and keeps the keys as they were, where the file is not what it has to be.
        """
        former, self._keys = self._keys, self._read()
        gone = sorted({key.name for key in former} - {key.name for key in self._keys})
        log.info("%d API keys are in force%s", len(self._keys), f"; gone: {', '.join(gone)}" if gone else "")

    def _read(self) -> tuple[Key, ...]:
        if self._file is None:
            return self._fixed
        keys = unambiguous((*_read_file(self._file), *self._fixed), where=str(self._file))
        if not keys:
            raise ConfigError(f"security.keys_file {self._file} has no keys; `modelhost keys new` makes one")
        return keys


def take_from(environ: MutableMapping[str, str]) -> tuple[Key, ...]:
    """Takes the keys out of the environment, so that no child process inherits them. Raises ConfigError.

    What the process was started with can still be read by its own user and by root, in /proc/PID/environ.
    """
    return parse_variable(environ.pop(VARIABLE, ""), where=VARIABLE)


def _read_file(file: Path) -> tuple[Key, ...]:
    data = read_private(file, setting="security.keys_file", max_bytes=_MAX_FILE_BYTES)
    try:
        return parse_file(data.decode(), where=str(file))
    except UnicodeDecodeError:
        raise ConfigError(f"security.keys_file {file} is not text in UTF-8") from None
