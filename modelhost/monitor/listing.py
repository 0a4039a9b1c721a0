"""All models that the repository has, a page at a time: from the index as it is, the disk is not looked at."""

from __future__ import annotations

import contextlib
from typing import Any, Final

from modelhost.errors import ModelHostError
from modelhost.host import Host
from modelhost.monitor.state import UNLOADED, is_pinned

#: Most models of one page.
MAX_LIMIT: Final = 200
MAX_OFFSET: Final = 1 << 31
MAX_SEARCH: Final = 256


def page(host: Host, *, search: str, offset: int, limit: int) -> dict[str, Any]:
    """Returns the models from `offset` on, `limit` at most, whose names have `search` in them, in whatever case."""
    catalog, wanted = host.pool.catalog, search.casefold()
    names = [name for name in catalog.names if wanted in name.casefold()] if wanted else catalog.names
    states: dict[str, str] = {}
    for model in host.pool.snapshot().models:
        if states.get(model.name) != "ready":  # of several versions one that serves
            states[model.name] = model.state
    rows = []
    for name in names[offset : offset + limit]:
        versions: tuple[str, ...] = ()
        with contextlib.suppress(ModelHostError):
            versions = catalog.versions(name)
        state = states.get(name, UNLOADED)
        rows.append({"name": name, "versions": versions, "state": state, "pinned": is_pinned(host, name)})
    return {"total": len(names), "models": rows}
