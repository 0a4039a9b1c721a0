"""ModelStreamInfer: answers in order, errors that do not end the stream, and bounds."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
from rpc_client import RpcClient, fake_raw, floats, raw, refused

from modelhost.runtime.fake import FakeScript


def numbered(count: int) -> Iterator[Any]:
    for index in range(count):
        request = raw("add", "FP32", np.array([index], np.float32))
        request.id = str(index)
        yield request


class Feed:
    """Requests that are sent when a test says so."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Any] = queue.Queue()

    def send(self, request: Any) -> None:
        self._queue.put(request)

    def end(self) -> None:
        self._queue.put(None)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._queue.get, None)


def test_answers_come_in_order_each_as_the_last_of_its_request(rpc: RpcClient) -> None:
    answers = [message.infer_response for message in rpc.stream(numbered(20))]
    assert [answer.id for answer in answers] == [str(index) for index in range(20)]
    assert [floats(answer) for answer in answers] == [[index + 10] for index in range(20)]
    assert all(answer.parameters["triton_final_response"].bool_param for answer in answers)


def test_an_error_is_a_message_and_the_stream_goes_on(rpc: RpcClient) -> None:
    wrong = raw("digits", "FP32", np.zeros((1, 2), np.float32), names=("image",))
    wrong.id = "wrong"
    right = fake_raw("add")
    first, second, third = rpc.stream(iter([wrong, fake_raw("nobody"), right]))
    assert first.error_message == "tensor 'image': expected FP32 [batch,1,8,8], got shape [1, 2]"
    assert (first.infer_response.id, len(first.infer_response.outputs)) == ("wrong", 0)
    assert "nobody" in second.error_message
    assert (third.error_message, floats(third.infer_response)) == ("", [11, 12])


def test_a_large_answer_in_a_stream(rpc: RpcClient) -> None:
    large = np.arange(1 << 20, dtype=np.float32)
    (answer,) = rpc.stream(iter([raw("add", "FP32", large)]))
    assert floats(answer.infer_response) == (large + 10).tolist()


def test_a_client_that_leaves_its_stream_ends_the_run(rpc_fake) -> None:
    script = FakeScript(run_may_end=threading.Event())  # set by the cancellation only
    client = rpc_fake({"a": script})
    feed = Feed()
    stream = client.stream(iter(feed))
    feed.send(fake_raw())
    assert script.run_started.wait(10)
    stream.cancel()
    client.served.eventually(lambda snapshot: snapshot.in_flight == 0 and snapshot.models[0].leases == 0)
    feed.end()


def test_only_as_many_streams_are_open_as_there_is_room_for_their_messages(rpc_fake) -> None:
    client = rpc_fake({"a": FakeScript()}, server={"max_request_bytes": "8MB", "max_decoding_bytes": "8MB"})
    feeds = [Feed() for _ in range(6)]  # 64 MB are above critical, two messages' for copies
    streams = [client.stream(iter(feed)) for feed in feeds]
    for feed, stream in zip(feeds, streams, strict=True):
        feed.send(fake_raw())
        assert floats(next(stream).infer_response) == [2, 4]
    code, text, figures = refused(lambda: next(client.stream(iter([fake_raw()]))))
    assert (code, figures["code"], figures["limit"]) == (grpc.StatusCode.UNAVAILABLE, "overloaded", 6)
    assert "8.0 MB (server.max_request_bytes)" in text
    assert floats(client.infer(fake_raw())) == [2, 4]  # single calls have their own turns
    feeds[0].end()
    assert list(streams[0]) == []
    assert floats(next(client.stream(iter([fake_raw()]))).infer_response) == [2, 4]
    for feed in feeds[1:]:
        feed.end()
