"""Where things lie. Imports next to nothing: every command does, and `--help` too."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

#: The checkout: what a process that is started here has on its path.
ROOT: Final = Path(__file__).resolve().parent.parent


def default_cache() -> Path:
    """The cache directory of this user."""
    return Path(tempfile.gettempdir()) / f"modelhost-benchmarks-{os.getuid()}"
