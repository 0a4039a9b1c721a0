"""Files of settings that are nobody else's to see: one way to read them, and to say that others may."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path
from typing import Final

from modelhost.errors import ConfigError

log = logging.getLogger("modelhost")

#: Of the group and of everybody else. To run such a file is of no use to anybody, and is no mode of one that is kept.
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
_READ: Final = stat.S_IRGRP | stat.S_IROTH
_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH

#: Windows has others' rights elsewhere: every file there has a mode that is everybody's.
_HAS_MODES: Final = os.name != "nt"

#: A pipe is refused, and not waited for.
_AT_ONCE: Final = getattr(os, "O_NONBLOCK", 0)


def read_private(file: Path, *, setting: str, max_bytes: int) -> bytes:
    """Returns what is in a file of at most `max_bytes` that `setting` names; blocks. Raises ConfigError.

    Any mode but that of its owner alone is warned of, and read: a file that a container is given belongs to
    its group.
    """
    try:
        with open(file, "rb", opener=lambda path, flags: os.open(path, flags | _AT_ONCE)) as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise ConfigError(f"{setting} {file} is not a regular file")
            data = stream.read(max_bytes + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {setting} {file}: {error.strerror}") from None
    if len(data) > max_bytes:
        raise ConfigError(f"{setting} {file} has more than {max_bytes} bytes")
    if _HAS_MODES and status.st_mode & _OTHERS:
        log.warning("%s %s: others may %s it; chmod 600 it", setting, file, _what_others_may(status.st_mode))
    return data


def _what_others_may(mode: int) -> str:
    words = [word for bits, word in ((_READ, "read"), (_WRITE, "change")) if mode & bits]
    return " and ".join(words) or "run"
