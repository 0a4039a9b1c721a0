"""Everybody else: clients that ask all the other models, so many in a second, in all forms, and some do not wait."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final

from benchmarks.soak.forms import FORMS, Request, datatype, packed, request, unpacked
from benchmarks.soak.models import Case, Question, Tensors, agrees
from benchmarks.soak.record import LEFT, LOST, OK, REFUSALS, WRONG, Book, judged
from benchmarks.soak.wire import Connection, Lost
from benchmarks.standing import stand_back

#: So many of the requests are given up before their answer has come.
_LEAVING_SHARE: Final = 0.05
_LONGEST_WAIT_S: Final = 0.05
_GRPC: Final = "grpc"
_RPC_TIMEOUT_S: Final = 150.0


@dataclass(slots=True)
class Served:
    """Which variants of each model may answer; of one that is being swapped, both. Any thread."""

    _variants: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def variants(self, name: str) -> tuple[int, ...]:
        """Returns the variants that may answer a request that begins now."""
        return self._variants.get(name, (0,))

    def since(self, name: str, before: tuple[int, ...]) -> tuple[int, ...]:
        """Returns those that may have answered a request that has its answer now, and began when `before` might."""
        return tuple(sorted({*before, *self.variants(name)}))

    def allow(self, name: str, *variants: int) -> None:
        """Says which may answer from now on."""
        self._variants[name] = variants


class Traffic:
    """Threads that ask, for the scope of the context; between `go` and `stop` they do."""

    def __init__(
        self,
        address: tuple[str, int],
        rpc_address: str | None,
        served: Served,
        book: Book,
        *,
        clients: int,
        per_second: float,
        seed: int,
    ) -> None:
        self._address, self._rpc_address = address, rpc_address
        self._served, self._book, self._seed = served, book, seed
        self._clients, self._interval_s = clients, clients / per_second
        self._cases: Sequence[Case] = ()
        self._may_leave = False
        self._ends = threading.Event()
        self._threads: list[threading.Thread] = []
        self._rounds = 0

    def __enter__(self) -> Traffic:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def go(self, cases: Sequence[Case], *, may_leave: bool) -> None:
        """Begins to ask these models; with `may_leave` some requests are given up."""
        self._cases, self._may_leave = cases, may_leave
        self._rounds += 1
        self._ends.clear()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(self._clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ends asking, when the answers that are still due have come."""
        self._ends.set()
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _work(self, number: int) -> None:
        stand_back()
        choose = random.Random(f"{self._seed} {self._rounds} {number}")
        forms = (*FORMS, _GRPC) if self._rpc_address is not None else FORMS
        connection, rpc = Connection(self._address), None
        due = time.monotonic() + self._interval_s * number / self._clients
        try:
            while not self._ends.wait(max(0.0, due - time.monotonic())):
                # Not at an even pace: it might fall in step with that of a resident, which would meet all of it.
                due = max(due + self._interval_s * choose.uniform(0.5, 1.5), time.monotonic() - 1.0)
                case = choose.choice(self._cases)
                question, form = choose.choice(case.questions), choose.choice(forms)
                if form == _GRPC and self._rpc_address is not None:
                    rpc = rpc or RpcClient(self._rpc_address)
                    self._ask_rpc(rpc, case, question)
                elif self._may_leave and choose.random() < _LEAVING_SHARE:
                    self._leave(connection, request(case, question, form), choose.uniform(0, _LONGEST_WAIT_S))
                else:
                    self._ask(connection, request(case, question, form))
        finally:
            connection.close()
            if rpc is not None:
                rpc.close()

    def _ask(self, connection: Connection, asked: Request) -> None:
        variants = self._served.variants(asked.case.name)
        try:
            reply = connection.ask(asked.data)
        except Lost as error:
            self._book.note(LOST, f"{asked.case.name} ({asked.form}): {error}")
            return
        self._book.note(*judged(asked, reply, self._served.since(asked.case.name, variants)))

    def _leave(self, connection: Connection, asked: Request, wait_s: float) -> None:
        """Sends a request, or a part of it, and hangs up."""
        data = asked.data if wait_s > 0.01 else asked.data[: len(asked.data) // 2]
        try:
            connection.send(data)
        except Lost as error:
            self._book.note(LOST, f"{asked.case.name} ({asked.form}): {error}")
            return
        self._ends.wait(wait_s)
        connection.close()
        self._book.note(LEFT)

    def _ask_rpc(self, rpc: RpcClient, case: Case, question: Question) -> None:
        variants = self._served.variants(case.name)
        outcome, found = rpc.infer(case, question)
        variants = self._served.since(case.name, variants)
        if outcome not in (OK, *REFUSALS):
            self._book.note(f"{LOST}: {outcome}", f"{case.name} (grpc): {outcome}")
        elif outcome == OK and not any(agrees(question.answers[variant], found) for variant in variants):
            self._book.note(WRONG, f"{case.name} (grpc): got {str(found)[:300]}")
        else:
            self._book.note(outcome)


def rpc_available() -> bool:
    """Says whether gRPC is installed here."""
    try:
        import grpc  # noqa: F401
    except ImportError:
        return False
    return True


class RpcClient:
    """A client of the gRPC port, with the host's own messages. One thread's."""

    def __init__(self, address: str) -> None:
        import grpc

        from modelhost.api.rpc.messages import METHODS, SERVICE

        self._channel = grpc.insecure_channel(address, options=(("grpc.use_local_subchannel_pool", 1),))
        self._request, answer = METHODS["ModelInfer"]
        self._error = grpc.RpcError
        self._call = self._channel.unary_unary(f"/{SERVICE}/ModelInfer", response_deserializer=answer.FromString)

    def close(self) -> None:
        """Hangs up."""
        self._channel.close()

    def infer(self, case: Case, question: Question) -> tuple[str, Tensors]:
        """Asks; returns the outcome, as HTTP's status and code, and the outputs."""
        asked = self._request(model_name=case.name)
        for name, value in question.inputs.items():
            asked.inputs.add(name=name, datatype=datatype(value), shape=value.shape)
            asked.raw_input_contents.append(packed(value))
        try:
            answer = self._call(asked.SerializeToString(), timeout=_RPC_TIMEOUT_S)
        except self._error as error:
            return _outcome(error), {}
        found: dict[str, Any] = {}
        for output, raw in zip(answer.outputs, answer.raw_output_contents, strict=True):
            found[output.name] = unpacked(raw, output.datatype).reshape(tuple(output.shape))
        return OK, found


def _outcome(error: Any) -> str:
    """Returns a failure in the words of HTTP, so that both are counted together."""
    import json

    from modelhost.api.rpc.errors import ERROR_KEY

    figures = json.loads(dict(error.trailing_metadata() or ()).get(ERROR_KEY, "{}"))
    found = figures.get("code", "")
    known = {refusal.split()[1]: refusal for refusal in REFUSALS}
    return known.get(found, f"{error.code().name} {found or error.details()}")
