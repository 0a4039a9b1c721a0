"""TOML as people, and damaged disks, write it."""

from __future__ import annotations

import tomllib
from typing import Any


def parse_toml(text: str) -> dict[str, Any]:
    """Returns the document. Raises ValueError where it is none, or has numbers or nesting that nobody could mean."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
