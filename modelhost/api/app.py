"""The HTTP application: routes, errors and lifespan put together. No decision about memory or slots."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

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
    on_ready: Callable[[], None] = lambda: None,
    on_failure: Callable[[ConfigError], None] | None = None,
) -> FastAPI:
    """Returns the application for `host`, which it opens at start-up and closes at shutdown.

    `on_ready` is called when the host is open and preloaded; `on_failure` with what stopped the
    start, which ends quietly then, where a server would print a traceback.
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
            raise SystemExit(1) from None
        try:
            infer.open()
            on_ready()
            yield
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
