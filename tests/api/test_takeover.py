"""Requests that come while another version takes over."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

from served import tensor

from modelhost.api import infer
from modelhost.runtime.fake import FakeScript

#: JSON of so many numbers is decoded on a thread.
MANY = 20_000


def test_a_request_is_answered_by_what_has_taken_over_while_it_was_decoded(
    serve_fake: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    script = FakeScript()
    served = serve_fake({"a": script}, models={"version_policy": {"latest": 1}})
    assert served.infer("a").json()["model_version"] == "1"
    begun, may_end, decode = threading.Event(), threading.Event(), infer.decode_request

    def slowly(*arguments: Any, **more: Any) -> Any:
        begun.set()
        assert may_end.wait(10)
        return decode(*arguments, **more)

    monkeypatch.setattr(infer, "decode_request", slowly)
    answer = served.later(served.infer, "a", tensor("x", "FP32", [MANY], [0.25] * MANY))
    assert begun.wait(10)
    script.fingerprint = (2,)
    file = tmp_path / "a/2/model.onnx"
    file.parent.mkdir()
    file.write_bytes(b"never read by the fake runtime")
    script.close_may_end, script.close_started = threading.Event(), threading.Event()
    served.post("/v2/repository/index")
    assert script.close_started.wait(10), "the version before it is about to leave"
    may_end.set()
    try:
        assert answer.result().status_code == 200
        assert answer.result().json()["model_version"] == "2"
    finally:
        script.close_may_end.set()
