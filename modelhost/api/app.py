"""The HTTP application: routes, errors and lifespan put together. No decision about memory or slots."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from fastapi import FastAPI
from fastapi.telemetry import TelemetryConfig
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from modelhost import __version__
from modelhost.api import errors, memory, models, monitor, page, repository, request_ids, server, v1
from modelhost.api.access import Guard, check_origin
from modelhost.api.access_log import KEY_NAME, AccessLog
from modelhost.api.event_stream import IS_HEAD
from modelhost.api.infer import InferRoutes, infer_target
from modelhost.api.inference import Inference
from modelhost.api.metrics import Metrics
from modelhost.api.peers import TRUSTED, Peers
from modelhost.api.shortcut import ShortCut
from modelhost.api.together import Together
from modelhost.api.v1 import Predictions, predict_target
from modelhost.errors import ConfigError, Forbidden, ModelNotFound, Unauthenticated
from modelhost.host import Host
from modelhost.memory.board import Seat
from modelhost.monitor import Feed
from modelhost.security.ring import KeyRing
from modelhost.security.secret import read_secret
from modelhost.security.texts import hide

if TYPE_CHECKING:  # most hosts are one process, and serve no gRPC
    from modelhost.api.handed import Handed
    from modelhost.api.rpc.server import RpcServer

#: The framework would follow OpenTelemetry's environment variables and export from every request.
_NO_TELEMETRY: Final[TelemetryConfig] = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "auto_configure": False,
}


class ModelHostApp(FastAPI):
    """The application; inference requests take a short cut past the framework.

    Its way to a route costs as much as all of ours (about 0.1 ms), and an inference request needs
    nothing of what it does there.
    """

    infer: InferRoutes
    short_cut: ShortCut
    """For a server that answers inference requests by itself; see protocol.py."""
    predictions: Predictions
    feed: Feed
    guard: Guard | None
    """Lets in who has a key; None where none is asked for."""
    access_log: AccessLog | None
    """Writes a line for each request; None where none is wanted."""
    together: Together | None = None
    """What answers for all processes of a host that is several."""
    handed: Handed | None = None
    """What runs for those other processes what does not fit there."""
    rpc: RpcServer | None = None
    """What answers gRPC, once the host is open and where it is asked for."""

    @property
    def grpc_port(self) -> int | None:
        """Where gRPC is answered."""
        return None if self.rpc is None else self.rpc.port

    @property
    def calls_under_way(self) -> int:
        """Inference requests over gRPC that have no answer yet."""
        return 0 if self.rpc is None else self.rpc.under_way

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers inference requests, and leaves everything else to the framework; refuses who has no key for it."""
        if scope["type"] == "http":
            request_ids.begin(_sent_id(scope))
            if self.handed is not None and scope["path"] == self.handed.path and self._is_ours(scope):
                await self.handed.respond(scope, receive, send)
                return
            if self.access_log is not None:
                await self.access_log.watch(self._answer, scope, receive, send)
                return
        await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.guard is not None and scope["type"] != "lifespan" and not self._is_ours(scope):
            try:
                key = self.guard.check(scope)
            except (Unauthenticated, Forbidden) as refused:
                scope[KEY_NAME] = refused.key_name if isinstance(refused, Forbidden) else None
                await errors.respond(refused)(scope, receive, send)
                return
            scope[KEY_NAME] = None if key is None else key.name
        if _names_a_slash(scope):
            error = ModelNotFound(f"{scope['path']}: an encoded slash is part of a name, and no name has one")
            await errors.respond(error)(scope, receive, send)
            return
        target = infer_target(scope)
        if target is not None:
            answer = await self.infer.respond(Request(scope, receive), *target)
            await answer(scope, receive, send)
            return
        target = predict_target(scope)
        if target is not None:
            response = await self.predictions.respond(Request(scope, receive), *target)
            await response(scope, receive, send)
            return
        if scope["type"] == "http":
            try:
                check_origin(scope)
            except Forbidden as refused:
                await errors.respond(refused)(scope, receive, send)
                return
        if self.together is not None and scope["type"] == "http":
            merge = self.together.merge_for(scope)
            if merge is not None:
                try:
                    await self.together.respond(merge, scope, receive, send)
                except Exception as error:
                    await errors.respond_unexpected(scope["method"], scope["path"], error)(scope, receive, send)
                return
        await self.route(scope, receive, send)

    def _is_ours(self, scope: Scope) -> bool:
        """Whether one of the host's own processes asks, for the host."""
        if self.together is None:
            return False
        sent = next((value for name, value in scope["headers"] if name == TRUSTED), None)
        return sent is not None and hmac.compare_digest(sent, self.together.secret)

    async def route(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers by the framework's routes, for this process alone."""
        await super().__call__(_as_get(scope), receive, send)

    def openapi(self) -> dict[str, Any]:
        """Returns the document of `/openapi.json`, which is made for each who asks."""
        from modelhost.api import openapi  # hosts that nobody asks need not hold it

        return openapi.document(self.routes)


def _sent_id(scope: Scope) -> str | None:
    """Returns what the client has sent as the request's id."""
    for name, value in scope["headers"]:
        if name == request_ids.RAW_HEADER:
            return str(value, "latin-1")
    return None


def _names_a_slash(scope: Scope) -> bool:
    """Says whether the path has an encoded slash, which its decoded form shows as one between segments:
    a model `a/ready` would be asked for as the readiness of `a`."""
    path = scope.get("raw_path") or b""
    return b"%2" in path and (b"%2F" in path or b"%2f" in path)


def _as_get(scope: Scope) -> Scope:
    """Returns a HEAD request as the GET that it is without the body, which the server leaves out."""
    if scope["type"] == "http" and scope["method"] == "HEAD":
        return {**scope, "method": "GET", IS_HEAD: True}
    return scope


def create_app(
    host: Host,
    *,
    keys: KeyRing | None = None,
    alerts_secret: bytes | None = None,
    on_ready: Callable[[], Coroutine[Any, Any, None]] | None = None,
    on_failure: Callable[[ConfigError], None] | None = None,
) -> ModelHostApp:
    """Returns the application for `host`, which it opens at start-up and closes at shutdown.

    `keys` are those that are asked for, where those of the settings' file are not all; `alerts_secret` signs alerts,
    where the settings name no file with one. Raises ConfigError for what those files have. `on_ready` runs beside the
    server once the host is open and preloaded. `on_failure` is called with what stopped the start, which ends
    quietly then, where a server would print a traceback; and who gives it has the server listen while the host
    preloads, and has to end it where that fails.
    """
    keys = keys or KeyRing.of(host.settings.security)
    guard = None if keys is None else Guard(keys)
    hide((host.settings.models.directory, host.settings.artifact_cache))
    secret_file = host.settings.alerts.secret_file
    metrics = Metrics(host, guard, alerts_secret=alerts_secret if secret_file is None else read_secret(secret_file))
    inference = _inference(host, metrics)
    infer = InferRoutes(inference)
    short_cut = ShortCut(infer)
    predictions = Predictions(infer)
    feed = Feed(host)

    app = ModelHostApp(
        title="modelhost",
        version=__version__,
        lifespan=lambda app: _Opening(app, host, inference, on_ready, on_failure).lifespan(),
        redirect_slashes=False,
        docs_url=None,  # the framework's page has its scripts from another machine; ours is in `page`
        redoc_url=None,
        telemetry=_NO_TELEMETRY,
    )
    errors.install(app)
    _add_routes(app, inference, metrics, infer, predictions, feed)
    app.infer, app.predictions, app.short_cut, app.feed, app.guard = infer, predictions, short_cut, feed, guard
    if isinstance(host.siblings, Seat):
        _join(app, host.siblings, inference, metrics)
    app.access_log = AccessLog() if host.settings.logging.access else None
    return app


def _join(app: ModelHostApp, seat: Seat, inference: Inference, metrics: Metrics) -> None:
    """Makes it one of several processes: it answers for all, and they run what does not fit here."""
    from modelhost.api.handed import Handed
    from modelhost.api.handover import HandOver

    app.together = Together(Peers(seat), app.route, inference.host.settings)
    app.handed = Handed(inference)
    inference.elsewhere = handing = HandOver(seat, inference)
    metrics.handed_over = lambda: handing.handed_over
    app.feed.whole = app.together.monitor


def _inference(host: Host, metrics: Metrics) -> Inference:
    """Returns what answers requests, with traces of them where those are wanted. Raises ConfigError.

    Their libraries are an extra, and are imported before the host measures what it holds itself.
    """
    settings = host.settings.tracing
    if not settings.enabled:
        return Inference(host, metrics)
    try:
        from modelhost.api.tracing.tracing import TracedInference, Tracing

        tracing = Tracing(settings.max_waiting)
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "opentelemetry":
            raise
        raise ConfigError(
            f"tracing.enabled is set, but OpenTelemetry is not installed ({error}): pip install 'modelhost[otel]'"
        ) from None
    metrics.traces = lambda: (tracing.traced, tracing.dropped)
    return TracedInference(host, metrics, tracing)


def _add_routes(
    app: ModelHostApp, inference: Inference, metrics: Metrics, infer: InferRoutes, predictions: Predictions, feed: Feed
) -> None:
    # For the OpenAPI page, and for 405: requests to these never get here.
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        app.add_api_route(f"{path}/infer", infer.infer_documented, methods=["POST"], tags=["models"])
    for path in ("/v1/models/{name}", "/v1/models/{name}/versions/{version}"):
        app.add_api_route(f"{path}:predict", predictions.predict_documented, methods=["POST"], tags=["v1"])
    host = inference.host
    for router in (
        server.routes(inference),
        models.routes(host),
        repository.routes(inference),
        v1.routes(host),
        memory.routes(host, metrics),
        monitor.routes(inference, feed),
    ):
        app.routes.extend(router.routes)
    app.routes.extend(page.ROUTES)


class _Opening:
    """Opens the host behind an application at its start, and closes it at its end; see create_app."""

    def __init__(
        self,
        app: ModelHostApp,
        host: Host,
        inference: Inference,
        on_ready: Callable[[], Coroutine[Any, Any, None]] | None,
        on_failure: Callable[[ConfigError], None] | None,
    ) -> None:
        self._app, self._host, self._inference = app, host, inference
        self._on_ready, self._on_failure = on_ready, on_failure

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """The time in which the host is open."""
        async with AsyncExitStack() as stack:
            try:
                await self._open(stack)
            except ConfigError as error:
                if self._on_failure is None:
                    raise
                self._on_failure(error)
                raise RuntimeError("the host could not be opened") from error
            starting = asyncio.get_running_loop().create_task(self._make_ready())
            yield
            self._app.feed.close()
            self._app.short_cut.close()
            starting.cancel()
            await asyncio.wait([starting])

    async def _open(self, stack: AsyncExitStack) -> None:
        host, app = self._host, self._app
        rpc = _rpc_server(host, app)
        if rpc is not None:
            stack.callback(rpc.release_port)
        await host.open()
        stack.push_async_callback(host.close)
        alerts = self._inference.metrics.alerts
        alerts.start()
        stack.push_async_callback(alerts.stop)
        stack.push_async_callback(self._inference.close)
        self._inference.open()
        if app.handed is not None:
            app.handed.open()
        app.feed.open()
        app.short_cut.open()
        if rpc is not None:
            await rpc.start(self._inference)
            stack.push_async_callback(rpc.stop)
            app.rpc = rpc
        if self._on_failure is None:
            await host.preload()

    async def _make_ready(self) -> None:
        if self._on_failure is not None:
            try:
                await self._host.preload()
            except ConfigError as error:
                self._on_failure(error)
                return
        if self._on_ready is not None and self._host.is_accepting:
            await self._on_ready()


def _rpc_server(host: Host, app: ModelHostApp) -> RpcServer | None:
    """Takes the gRPC port where one is asked for. Raises ConfigError."""
    if host.settings.server.grpc_port is None:
        return None
    server: RpcServer = import_rpc().RpcServer(host, app.guard, app.access_log, app.together)
    return server


def import_rpc() -> ModuleType:
    """Imports gRPC, which is an extra, before the host measures what it holds itself. Raises ConfigError."""
    try:
        from modelhost.api.rpc import server as found
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("grpc", "google"):
            raise
        raise ConfigError(
            f"server.grpc_port is set, but gRPC is not installed ({error}): pip install 'modelhost[grpc]'"
        ) from None
    return found
