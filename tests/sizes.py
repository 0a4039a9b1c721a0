"""How long a check is: short in CI, and at its full size with MODELHOST_TEST_FULL=1."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import settings

FULL: Final = os.environ.get("MODELHOST_TEST_FULL") == "1"
_FEWEST: Final = 25


def examples(full: int) -> settings:
    """Returns the settings of a random test that takes so many examples at its full size, and a tenth of them in CI:
    each run there takes others."""
    return settings(max_examples=full if FULL else max(_FEWEST, full // 10))
