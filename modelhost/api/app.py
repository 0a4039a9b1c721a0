"""The HTTP application: routes, errors and lifespan put together. No decision about memory or slots."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from modelhost import __version__
from modelhost.api import errors, memory, models
from modelhost.api.infer import InferRoutes
from modelhost.api.metrics import Metrics
from modelhost.errors import ConfigError
from modelhost.host import Host


def create_app(
    host: Host,
    *,
    on_ready: Callable[[], Coroutine[Any, Any, None]] | None = None,
    on_failure: Callable[[ConfigError], None] | None = None,
) -> FastAPI:
    """Returns the application for `host`, which it opens at start-up and closes at shutdown.

    `on_ready` runs beside the server once the host is open and preloaded; `on_failure` is called
    with what stopped the start, which ends quietly then, where a server would print a traceback.
    """
    metrics = Metrics(host)
    infer = InferRoutes(host, metrics)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            await host.__aenter__()
        except ConfigError as error:
            if on_failure is None:
                raise
            on_failure(error)
            raise RuntimeError("the host could not be opened") from error
        try:
            infer.open()
            announcing = None if on_ready is None else asyncio.get_running_loop().create_task(on_ready())
            yield
            if announcing is not None:
                announcing.cancel()
        finally:
            await host.__aexit__()

    app = FastAPI(title="modelhost", version=__version__, lifespan=lifespan)
    errors.install(app)
    # First in the list and without the framework's parameter handling: it is the hot path.
    for path in ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer"):
        app.add_route(path, infer.infer, methods=["POST"])
    app.include_router(models.routes(host))
    app.include_router(memory.routes(host, metrics))
    return app
