"""What goes wrong during a soak, and what the host has to make of it. Each fault is over when its method returns,
and is its own witness: it raises Unmet where the host did something else than it should.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.client import Client
from benchmarks.models import ARTIFACTS
from benchmarks.process import HostProcess
from benchmarks.soak.forms import Request, code, post, request
from benchmarks.soak.models import Case, Question, put
from benchmarks.soak.record import LEFT, LOST, OK, REFUSALS, Book, judged
from benchmarks.soak.traffic import Served
from benchmarks.soak.wire import Connection, Lost, Reply

_MB: Final = 1 << 20
_POLL_S: Final = 0.05
_PATIENCE_S: Final = 60.0
#: Must show 3: from 256 MB, this share of it is left for a while.
_LOWERED_SHARE: Final = 160 / 256
_BROKEN: Final = "broken"
_SLOW_SENDERS: Final = 20
_GARBAGE: Final = 30


class Unmet(Exception):
    """The host did not do what it should."""


@dataclass(slots=True)
class Faults:
    """Does one thing after another that goes wrong. One thread's."""

    host: HostProcess
    address: tuple[str, int]
    directory: Path
    cases: list[Case]
    """Those that may be replaced and unloaded."""
    served: Served
    book: Book
    seed: int
    lowered_s: float = 10.0
    """How long the limit stays lowered, and slow clients go on."""
    only: tuple[str, ...] = ()
    """Names of those to bring about; all where there are none."""
    random: random.Random = field(init=False)
    _can_lower: bool | None = None
    _deck: list[str] = field(default_factory=list)
    _variants: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = random.Random(f"{self.seed} faults")

    def next(self) -> str:
        """Returns the name of the next fault: all of them in turn, in an order that changes."""
        if not self._deck:
            self._deck = list(self.known())
            self.random.shuffle(self._deck)
        return self._deck.pop()

    def known(self) -> Mapping[str, Callable[[], None]]:
        """Returns the faults that can be brought about here."""
        found: dict[str, Callable[[], None]] = {
            "unload and load": self.reload,
            "index": self.index,
            "hot swap": self.swap,
            "preparing child killed": self.kill_child,
            "broken model": self.add_broken,
            "slow senders": self.send_slowly,
            "garbage": self.send_garbage,
            "batch too large": self.send_too_much,
            "clients that leave": self.leave,
            "large batches": self.send_large,
        }
        if self._can_lower is None:
            self._can_lower = self.follows_limit()
        if self._can_lower:
            found["limit lowered"] = self.lower_limit
        return {name: act for name, act in found.items() if not self.only or name in self.only}

    # --- the repository ------------------------------------------------------------------------------

    def reload(self) -> None:
        """Unloads and loads some models."""
        with Connection(self.address) as connection:
            for case in self.random.sample(self.cases, min(3, len(self.cases))):
                path = f"/v2/repository/models/{case.name}"
                self._expect(connection.ask(post(f"{path}/unload")), "200")
                self._expect(connection.ask(post(f"{path}/load")), "200", *REFUSALS)

    def index(self) -> None:
        """Has the repository looked at."""
        with Connection(self.address) as connection:
            reply = connection.ask(post("/v2/repository/index"))
            self._expect(reply, "200")

    def swap(self) -> None:
        """Replaces a model's file by one with other weights, and has that noticed: from then on only it answers."""
        case = self.random.choice(self.cases)
        self._replace(case)
        with Connection(self.address) as connection:
            self._expect(connection.ask(post("/v2/repository/index")), "200")
            # Whether the index has it loaded again or only marked is the host's own affair: a load settles it.
            self._settle(connection, case)

    def kill_child(self) -> None:
        """Kills what opens a model for the first time; the model is served all the same."""
        case = self.random.choice(self.cases)
        self._replace(case)
        self._forget_artifact(case)
        with Connection(self.address) as connection:
            connection.send(post(f"/v2/repository/models/{case.name}/load"))
            deadline = time.monotonic() + 5
            children: list[int] = []
            while not children and time.monotonic() < deadline:
                children = _children(self.host.pid)
                time.sleep(_POLL_S / 10)
            time.sleep(self.random.uniform(0, 0.3))
            for pid in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._expect(connection.receive(), "200", *REFUSALS)
            self._settle(connection, case)

    def add_broken(self) -> None:
        """Adds a model that cannot be opened, asks it, and takes it away again."""
        folder = self.directory / _BROKEN / "1"
        folder.mkdir(parents=True, exist_ok=True)
        whole = self.random.choice(self.cases).files[0].read_bytes()
        cut = whole[: self.random.randrange(1, min(len(whole), 1 << 20))]
        (folder / "model.onnx").write_bytes(self.random.choice([cut, self.random.randbytes(2000), b""]))
        asked = request(self.cases[0], self.cases[0].questions[0], "json")
        data = asked.data.replace(f"/{asked.case.name}/".encode(), f"/{_BROKEN}/".encode())
        with Connection(self.address) as connection:
            self._expect(connection.ask(post("/v2/repository/index")), "200")
            self._expect(connection.ask(data), "500 model_broken", "404 model_not_found", *REFUSALS)
            (folder / "model.onnx").unlink()
            folder.rmdir()
            folder.parent.rmdir()
            self._expect(connection.ask(post("/v2/repository/index")), "200")
            self._expect(connection.ask(data), "404 model_not_found", "500 model_broken")

    def _replace(self, case: Case) -> None:
        """Puts a model's other variant in its place; until that is settled both may answer."""
        variant = 1 - self._variants.get(case.name, 0)
        self.served.allow(case.name, 0, 1)
        put(case.files[variant], self.directory / case.name / "1" / "model.onnx")
        self._variants[case.name] = variant

    def _settle(self, connection: Connection, case: Case) -> None:
        """Waits until the model's new variant answers; from then on no other may. Raises Unmet."""
        variant, deadline = self._variants[case.name], time.monotonic() + _PATIENCE_S
        question = case.questions[0]
        while True:
            # Loads it again where its file has changed, as documented.
            loaded = connection.ask(post(f"/v2/repository/models/{case.name}/load"))
            self._expect(loaded, "200", *REFUSALS)
            reply = connection.ask(request(case, question, "json").data)
            if reply.status == 200 and _answers(case, question, reply, variant):
                break
            self._expect(reply, "200", *REFUSALS)
            if time.monotonic() > deadline:
                raise Unmet(f"{case.name}: its new file was not seen within {_PATIENCE_S:.0f} s")
            time.sleep(_POLL_S)
        time.sleep(_POLL_S)  # for those that had begun before
        self.served.allow(case.name, variant)

    def _forget_artifact(self, case: Case) -> None:
        """Takes away what is prepared of a model's new file, which is not in use yet, so that it has to be prepared."""
        from modelhost.prepare import ArtifactStore
        from modelhost.runtime.ort import identity  # imports ONNX Runtime

        store = ArtifactStore(self.directory / ARTIFACTS, self.directory, identity())
        folder = self.directory / ARTIFACTS / store.key_of(self.directory / case.name / "1" / "model.onnx")
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)

    # --- memory ----------------------------------------------------------------------------------------

    def follows_limit(self) -> bool:
        """Says whether the host notices a limit that is lowered while it runs; tries with a little less."""
        group = self.host.group
        if group is None:
            return False
        with Client(self.host.url) as client:
            whole = client.memory()["limit_bytes"]
            try:
                group.change_limit(group.limit_bytes - 4 * _MB)
                return bool(_until(lambda: client.memory()["limit_bytes"] < whole, 1.0))
            finally:
                group.change_limit(group.limit_bytes)
                _until(lambda: client.memory()["limit_bytes"] == whole, 1.0)

    def lower_limit(self) -> None:
        """Lowers the group's limit under load, and raises it again."""
        group = self.host.group
        assert group is not None
        lowered = int(group.limit_bytes * _LOWERED_SHARE)
        with Client(self.host.url) as client:
            try:
                reached = _until(lambda: group.approach_limit(lowered), 10.0)
                time.sleep(self.lowered_s)
                seen = client.memory()["limit_bytes"]
            finally:
                group.change_limit(group.limit_bytes)
            if not reached:
                raise Unmet(f"the host did not shed enough for a limit of {lowered} bytes within 10 s")
            if seen > lowered:
                raise Unmet(f"the host counts with {seen} bytes where the limit is {lowered}")

    def send_too_much(self) -> None:
        """Asks for more rows than can ever run."""
        case = next((case for case in self.cases if case.kind in ("conv20", "heap")), self.cases[0])
        rows = np.zeros((4096, 3, 8, 8) if case.kind in ("conv20", "heap") else (1 << 20, 4), np.float32)
        asked = request(case, Question({"x": rows}, ({}, {})), "binary")
        with Connection(self.address) as connection:
            self._expect(connection.ask(asked.data), "413 run_too_large", "413 request_too_large", *REFUSALS)

    def send_large(self) -> None:
        """Asks for many rows that can run, so that activations fill up."""
        cases = [case for case in self.cases if case.kind in ("conv", "conv20", "heap")]
        with Connection(self.address) as connection:
            for case in self.random.sample(cases, min(2, len(cases))):
                question = case.questions[0]
                many = Question({"x": np.repeat(question.inputs["x"], 64, axis=0)}, _repeated(question, 64))
                self._judge(connection, request(case, many, "binary"))

    # --- clients ---------------------------------------------------------------------------------------

    def send_slowly(self) -> None:
        """Many clients that send a large body by single bytes, and never end."""
        case = self.cases[0]
        head = post(f"/v2/models/{case.name}/infer", b" " * _MB)[: -_MB + 10]
        with contextlib.ExitStack() as stack:
            slow = []
            for _ in range(_SLOW_SENDERS):
                one = stack.enter_context(socket.create_connection(self.address, 5))
                one.sendall(head)
                slow.append(one)
            deadline = time.monotonic() + self.lowered_s
            while slow and time.monotonic() < deadline:
                time.sleep(0.2)
                slow = [one for one in slow if _sends(one)]

    def send_garbage(self) -> None:
        """Requests that are none, or ask for what makes no sense: each is answered with a client's error, or hung up
        on."""
        case = self.cases[0]
        good = request(case, case.questions[0], "json").data
        for _ in range(_GARBAGE):
            _, _, body = good.partition(b"\r\n\r\n")
            match self.random.randrange(4):
                case 0:
                    data = self.random.randbytes(self.random.randrange(1, 4000)) + b"\r\n\r\n"
                case 1:
                    data = post(f"/v2/models/{case.name}/infer", self.random.randbytes(len(body)))
                case 2:
                    at = self.random.randrange(len(body))
                    data = post(f"/v2/models/{case.name}/infer", body[:at] + body[at + 1 + at % 7 :])
                case _:
                    data = post(f"/v2/models/{self.random.randbytes(4).hex()}/infer", body)
            with Connection(self.address, timeout_s=20) as connection:
                try:
                    reply = connection.ask(data)
                except Lost:
                    continue
                if reply.status >= 500 and code(reply) not in REFUSALS:
                    raise Unmet(f"{code(reply)} for {data[:200]!r}")

    def leave(self) -> None:
        """Many clients at once that do not wait for their answers."""
        with contextlib.ExitStack() as stack:
            for _ in range(20):
                case = self.random.choice(self.cases)
                connection = stack.enter_context(Connection(self.address))
                connection.send(request(case, self.random.choice(case.questions), "binary").data)
                self.book.note(LEFT)
            time.sleep(self.random.uniform(0, 0.1))

    # --- what came ---------------------------------------------------------------------------------------

    def _judge(self, connection: Connection, asked: Request) -> None:
        """Asks, and counts the outcome like everybody's."""
        variants = self.served.variants(asked.case.name)
        try:
            self.book.note(*judged(asked, connection.ask(asked.data), variants))
        except Lost as error:
            self.book.note(LOST, f"{asked.case.name} ({asked.form}): {error}")

    def _expect(self, reply: Reply, *wanted: str) -> None:
        """Raises Unmet where the answer is none of those."""
        found = "200" if reply.status == 200 else code(reply)
        if found not in wanted:
            raise Unmet(f"expected {' or '.join(wanted)}, got {found}: {reply.body[:300]!r}")


def _repeated(question: Question, times: int) -> tuple[dict[str, Any], dict[str, Any]]:
    first, second = (
        {name: np.repeat(value, times, axis=0) for name, value in answer.items()} for answer in question.answers
    )
    return first, second


def _answers(case: Case, question: Question, reply: Reply, variant: int) -> bool:
    asked = request(case, question, "json")
    outcome, _ = judged(asked, reply, (variant,))
    return outcome == OK


def _sends(connection: socket.socket) -> bool:
    """Sends one byte; says whether the other side still takes it."""
    try:
        connection.sendall(b" ")
    except OSError:
        return False
    return True


def _until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, file.read_text().split())
    return found
