"""`modelhost keys`, a host that asks for keys, and the commands that have one."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result
from host_process import COMMAND, MODELS, HostProcess, environment, running_host

from modelhost.cli.main import cli
from modelhost.security.keys import new_key, parse_file

INFER, OPS = (new_key(name, roles)[0] for name, roles in (("app", ["infer"]), ("ops", ["manage"])))
SEPAL = ("--set", 'species=["setosa"]', "--set", "sepal=[5.1, 3.4]")


def run(*arguments: object, **variables: str) -> Result:
    return CliRunner(env={"MODELHOST_API_KEY": None, "MODELHOST_URL": None} | variables).invoke(
        cli, [*map(str, arguments)]
    )


# --- making them --------------------------------------------------------------------------------------------


def test_a_key_is_shown_once_with_its_line_for_the_file() -> None:
    ended = run("keys", "new", "app", "--role", "observe", "--role", "infer")
    assert ended.exit_code == 0
    key, line = (text.strip() for text in ended.output.splitlines() if text.startswith("  "))
    (kept,) = parse_file(line, where="shown")
    assert line.startswith("app  infer,observe  sha256:")
    assert key not in line
    assert kept.digest == hashlib.sha256(key.encode()).digest()


def test_a_key_goes_to_a_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    first = run("keys", "new", "app", "--role", "infer", "--file", file)
    file.write_text(file.read_text().rstrip("\n"))  # as editors may leave it
    second = run("keys", "new", "ops", "--role", "manage", "--file", file)
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert file.stat().st_mode & 0o777 == 0o600
    assert [key.name for key in parse_file(file.read_text(), where="file")] == ["app", "ops"]
    assert first.output.strip() not in file.read_text()
    before = file.read_text()
    again = run("keys", "new", "app", "--role", "infer", "--file", file)
    assert again.exit_code == 1
    assert "'app' has a name that is there already" in str(again.exception)
    assert file.read_text() == before


def test_a_role_that_there_is_not_and_a_key_for_nothing_are_refused() -> None:
    assert "'root' is not one of 'infer', 'manage', 'observe'" in run("keys", "new", "app", "--role", "root").output
    assert "Missing option '--role'" in run("keys", "new", "app").output


# --- a host that asks for them ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    directory = tmp_path_factory.mktemp("keys")
    keys = f"app:infer:{INFER} ops:manage:{OPS}"
    # On every address: with keys it may.
    flags = ("--host", "0.0.0.0", "--memory-limit", "400MB")
    with running_host(directory, MODELS, *flags, MODELHOST_API_KEYS=keys) as running:
        yield running


def test_the_commands_take_a_key_from_the_environment_or_a_file(host: HostProcess, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(f"{INFER}\n")
    asked = ("infer", "iris_petals", *SEPAL, "--url", host.url)
    assert run(*asked, "--api-key-file", file).exit_code == 0
    assert run(*asked, MODELHOST_API_KEY=INFER).exit_code == 0
    shown = run("memory", "--url", host.url, MODELHOST_API_KEY=OPS)
    assert shown.exit_code == 0, shown.output
    assert "iris_petals" in shown.output


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (None, "401: this host asks for an API key: Authorization: Bearer KEY; give a key in MODELHOST_API_KEY or"),
        (INFER + "x", "401: no API key that is known here was sent"),
        (INFER, "403: the key 'app' is for infer, this needs manage or observe; ask who runs the host"),
    ],
    ids=["none", "unknown", "other role"],
)
def test_the_commands_say_what_to_do_without_the_right_key(host: HostProcess, key: str | None, said: str) -> None:
    ended = run("memory", "--url", host.url, **({} if key is None else {"MODELHOST_API_KEY": key}))
    assert ended.exit_code == 1
    assert f"Error: {said}" in ended.output
    assert key is None or key not in ended.output


@pytest.mark.parametrize("text", ["", "two words", "two\nlines", "ä" * 40])
def test_what_is_no_key_is_not_sent(tmp_path: Path, text: str) -> None:
    file = tmp_path / "key"
    file.write_text(text)
    assert "expected an API key and nothing else" in run("memory", "--api-key-file", file).output
    if text:
        ended = run("memory", MODELHOST_API_KEY=text)
        assert "MODELHOST_API_KEY: expected an API key and nothing else" in ended.output
        assert text not in ended.output
    assert "cannot read" in run("memory", "--api-key-file", tmp_path / "nothing").output


def test_a_key_is_not_sent_on_to_where_a_host_redirects(host: HostProcess) -> None:
    import http.server
    import threading

    seen: list[str | None] = []

    class Redirecting(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_response(302 if self.path == "/memory" else 404)
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/other")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with http.server.HTTPServer(("127.0.0.1", 0), Redirecting) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        run("memory", "--url", f"http://127.0.0.1:{server.server_address[1]}", MODELHOST_API_KEY=INFER)
        server.shutdown()
        thread.join()
    assert seen == [f"Bearer {INFER}", None]


def test_keys_are_in_no_output_and_in_no_childs_environment(host: HostProcess) -> None:
    headers = {"Authorization": f"Bearer {INFER}"}
    assert httpx.get(f"{host.url}/v2", headers=headers, trust_env=False).status_code == 200
    assert httpx.get(f"{host.url}/v2/health/ready", trust_env=False).status_code == 200
    assert '-H "Authorization: Bearer $MODELHOST_API_KEY"' in "\n".join(host.banner)
    for key in (INFER, OPS):
        assert key not in "\n".join(host.banner) + host.log
    # What a child would get: the environment of the process after it has taken its keys out.
    code = (
        "import os, subprocess, sys; from modelhost.security.ring import take_from; take_from(os.environ); "
        "print(subprocess.run(['env'], capture_output=True, text=True).stdout)"
    )
    variables = environment(MODELHOST_API_KEYS=f"app:infer:{INFER}")
    ended = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=True)
    assert "PATH=" in ended.stdout
    assert INFER not in ended.stdout


def test_a_hangup_has_the_file_read_again(tmp_path: Path) -> None:
    """A file that is not right changes nothing; one that is does so on connections that are open."""
    file = tmp_path / "keys"
    (former, kept), (latter, replacing) = new_key("app", ["infer"]), new_key("app", ["infer"])
    file.write_text(kept.line())
    with (
        running_host(tmp_path, MODELS, "--memory-limit", "400MB", MODELHOST_SECURITY_KEYS_FILE=str(file)) as running,
        httpx.Client(base_url=running.url, trust_env=False) as client,
    ):

        def status(key: str) -> int:
            return client.get("/v2", headers={"Authorization": f"Bearer {key}"}).status_code

        def reload_until(said: str) -> None:
            running.process.send_signal(signal.SIGHUP)
            until = time.monotonic() + 20
            while said not in running.log:
                assert time.monotonic() < until, running.log
                time.sleep(0.01)

        assert (status(former), status(latter)) == (200, 401)
        file.write_text("nonsense")
        reload_until("expected `NAME")
        assert (status(former), status(latter)) == (200, 401)
        file.write_text(replacing.line())
        reload_until("1 API keys are in force")
        assert (status(former), status(latter)) == (401, 200)


# --- and one that does not ----------------------------------------------------------------------------------


def test_a_public_address_without_keys_is_refused_before_anything_else(tmp_path: Path) -> None:
    arguments = [*COMMAND, "serve", "--models", str(MODELS), "--port", "0", "--host", "0.0.0.0"]
    ended = subprocess.run(arguments, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert ended.stderr.startswith("modelhost: server.host is 0.0.0.0, which other machines can reach, and no API keys")
    assert "--insecure" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_a_public_address_without_keys_is_served_where_somebody_says_so(tmp_path: Path) -> None:
    with running_host(tmp_path, MODELS, "--host", "0.0.0.0", "--insecure", "--memory-limit", "400MB") as running:
        assert httpx.get(f"{running.url}/v2", trust_env=False).status_code == 200


def test_a_file_of_keys_that_is_wrong_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"app infer {INFER}\n")
    variables = environment(MODELHOST_SECURITY_KEYS_FILE=str(tmp_path / "keys"))
    arguments = [*COMMAND, "serve", "--models", str(MODELS), "--port", "0"]
    ended = subprocess.run(arguments, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=30)
    assert ended.returncode == 1
    assert "keys line 1: expected `NAME  ROLE[,ROLE...]  sha256:HEX`" in ended.stderr
    assert INFER not in ended.stderr
    assert os.environ.get("MODELHOST_API_KEYS") is None
