"""The pages for people, at `/` and of the API at `/docs`: their files, as they lie in the package, and who gets the
first instead of V1's answer.

Nothing of it is kept in memory: each file is read when a browser asks for it, a few times a day.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

#: Where the files are: data of the package, with no module among them.
FOLDER: Final = f"{Path(__file__).parents[1]}/monitor/page"

INDEX: Final = "index.html"
REFERENCE: Final = "reference.html"
_SCRIPT: Final = "text/javascript; charset=utf-8"

#: By name, what each file is. Names of requests are looked up here and never joined to a path.
ASSETS: Final = {
    "style.css": "text/css; charset=utf-8",
    "icon.svg": "image/svg+xml",
    **{
        f"{module}.js": _SCRIPT
        for module in (
            "access",
            "actions",
            "announce",
            "answers",
            "bar",
            "dom",
            "events",
            "figures",
            "forecast",
            "form",
            "halves",
            "header",
            "history",
            "host",
            "models",
            "page",
            "panel",
            "plots",
            "policy",
            "reference",
            "states",
            "stream",
            "tensors",
            "units",
        )
    },
}

#: Scripts and styles come from files of this host and nowhere else, and nothing inline runs: names of models and texts
#: of errors are other people's words.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS: Final = {
    "Cache-Control": "no-cache",  # kept by the browser, and asked for again by its ETag
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def index(request: Request) -> Response:
    """Returns the page."""
    return _file(request, INDEX, "text/html; charset=utf-8", {"Vary": "Accept"})


async def _reference(request: Request) -> Response:
    return _file(request, REFERENCE, "text/html; charset=utf-8", {})


async def _asset(request: Request) -> Response:
    name = request.path_params["name"]
    kind = ASSETS.get(name)
    return Response(status_code=404, headers=_HEADERS) if kind is None else _file(request, name, kind, {})


#: Not among the routes of the OpenAPI page: these are no calls.
ROUTES: Final = (
    Route("/ui/{name}", _asset, include_in_schema=False),
    Route("/docs", _reference, include_in_schema=False),
)


def _file(request: Request, name: str, media_type: str, headers: dict[str, str]) -> Response:
    with open(f"{FOLDER}/{name}", "rb") as stream:  # some 10 KB, from the page cache: 0.05 ms
        data = stream.read()
    tag = f'"{hashlib.sha256(data).hexdigest()[:32]}"'
    headers = _HEADERS | headers | {"ETag": tag}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(data, media_type=media_type, headers=headers)


def prefers_page(accept: str | None) -> bool:
    """Says whether a request's `Accept` names HTML before JSON, as browsers do and programs do not."""
    weights = dict(_weight(part) for part in (accept or "").lower().split(","))
    html = _of(weights, "text/html", "text/*", "*/*")
    return html > _of(weights, "application/json", "application/*", "*/*")


def _of(weights: dict[str, float], *ranges: str) -> float:
    """Returns the weight of a type, by the narrowest range that has it."""
    return next((weights[name] for name in ranges if name in weights), 0.0)


def _weight(part: str) -> tuple[str, float]:
    name, *parameters = (word.strip() for word in part.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0
