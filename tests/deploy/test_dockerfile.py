"""What the Dockerfile says, as far as it can be looked at without building it: `test_image.py` does that."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from built_package import ROOT, foreign_environment
from host_process import MODELS

import modelhost


def instructions() -> list[tuple[str, str]]:
    """Returns the instructions and what they are given, their lines joined."""
    joined = re.sub(r"\\\n(?: *#.*\n)*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in joined.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Returns the instructions of each stage by its name, those that it is built upon first."""
    found: dict[str, list[tuple[str, str]]] = {}
    for word, rest in instructions():
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = list(found.get(base, []))
        found[name].append((word, rest))
    return found


STAGES = stages()
VARIANTS = ("runtime", "bundled")


def last(stage: str, instruction: str) -> str:
    return [rest for word, rest in STAGES[stage] if word == instruction][-1]


def test_the_variants_are_targets_and_bundled_is_what_a_build_without_one_makes() -> None:
    assert set(VARIANTS) <= set(STAGES)
    assert list(STAGES)[-1] == "bundled"


@pytest.mark.parametrize("stage", VARIANTS)
def test_a_variant_runs_without_a_shell_and_without_root(stage: str) -> None:
    assert json.loads(last(stage, "CMD")) == ["modelhost", "serve"]
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", last(stage, "USER"))
    assert "ENTRYPOINT" not in dict(STAGES[stage])


def test_the_version_is_the_packages() -> None:
    defaults = dict(rest.split("=", 1) for word, rest in STAGES["runtime"] if word == "ARG")
    assert defaults["VERSION"] == modelhost.__version__


def test_what_is_installed_is_locked() -> None:
    installs = [rest for word, rest in STAGES["build"] if word == "RUN" and " install " in rest and "pip" in rest]
    assert len(installs) == 2
    assert "--require-hashes -r lock/serve.txt" in installs[0]
    assert "--no-deps --no-build-isolation" in installs[1]


# --- what was removed ----------------------------------------------------------------------------------


def removed() -> list[str]:
    """Returns the modules that the image is without."""
    site = next(rest for word, rest in STAGES["build"] if word == "RUN" and "site-packages" in rest)
    library = next(rest for word, rest in STAGES["root"] if word == "RUN" and "lib/python3" in rest)
    texts = (site.partition("&&")[2], library.partition("lib/python3.11")[2])
    words = [word for text in texts for word in re.search(r"rm -rf (.*?)&&", text)[1].split()]  # type: ignore[index]
    return [
        word.removesuffix(".py").replace("/", ".")
        for word in words
        if not re.search(r"[*]|^/|\.so|include|_core|/lib$", word)
    ]


#: Serving, preparing, and one inference: as the image does it.
WITHOUT = """
import sys
for name in {names!r}:
    sys.modules[name] = None  # whoever imports it gets an ImportError
import modelhost.cli.serve, modelhost.api.app, modelhost.cli.prepare
import uvicorn.lifespan.on, uvicorn.loops.uvloop, uvicorn.protocols.http.httptools_impl
from modelhost.cli.main import main
main(["infer", "iris_petals", "--models", {models!r}, "--set", 'species=["setosa"]', "--set", "sepal=[5.1, 3.4]"])
"""


def test_nothing_that_serves_imports_what_the_image_is_without() -> None:
    names = removed()
    assert {"onnxruntime.quantization", "google", "numpy.f2py", "ensurepip", "tkinter"} <= set(names)
    code = WITHOUT.format(names=names, models=str(MODELS))
    done = subprocess.run(
        [sys.executable, "-c", code], env=foreign_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "petal" in done.stdout


# --- the health check ----------------------------------------------------------------------------------


@pytest.fixture
def answering() -> Iterator[list[int]]:
    """A host that answers with the status in the list; its port comes second."""
    said = [200]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(said[0] if self.path == "/v2/health/ready" else 404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    said.append(server.server_port)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield said
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("status", "expected"), [(200, 0), (503, 1)])
def test_the_health_check_says_whether_the_host_is_ready(answering: list[int], status: int, expected: int) -> None:
    said = last("runtime", "HEALTHCHECK").partition("CMD ")[2]
    command = json.loads(said)
    answering[0] = status
    variables = {**foreign_environment(), "MODELHOST_SERVER_PORT": str(answering[1])}
    done = subprocess.run([sys.executable, *command[1:]], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == expected, done.stderr
