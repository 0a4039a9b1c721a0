"""What headers say of a trace, and the parts of a request: no library, no clock."""

from __future__ import annotations

import pytest

from modelhost.api.traces import Asked, Part, trace_of
from modelhost.pool import ModelKey, Timing

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([], None),
        ([(b"content-length", b"2")], None),
        ([(b"tracestate", b"a=1")], None),
        ([(b"traceparent", PARENT.encode())], (PARENT, "")),
        ([("traceparent", PARENT), ("tracestate", "a=1"), ("tracestate", "b=2")], (PARENT, "a=1,b=2")),
        ([(b"traceparent", PARENT.encode()), (b"traceparent", PARENT.encode())], None),
        ([(b"traceparent", b"\xff" * 5000)], ("\xff" * 2048, "")),
    ],
)
def test_headers_name_one_trace_or_none(headers: list[tuple[object, object]], expected: tuple[str, str] | None) -> None:
    assert trace_of(headers) == expected


def asked(ended_ns: int, **times: int) -> Asked:
    timing = Timing(1000)
    for name, value in times.items():
        setattr(timing, name, value)
    return Asked.of(timing, ModelKey("a", "1"), "ok", ended_ns)


def test_a_run_in_place_is_decoded_run_and_encoded() -> None:
    found = asked(1100, decoding_ns=1020, input_ns=10, infer_ns=50, output_ns=15)
    assert found.parts() == [Part("decode", 1020, 1030), Part("run", 1030, 1080), Part("encode", 1080, 1095)]


def test_a_cold_start_has_its_load_and_what_it_waited_for_a_thread() -> None:
    # Received for 100, decoded for 10, loaded for 500, waited for 90 more; the queue's time has all but the decoding.
    found = asked(2000, decoding_ns=1100, input_ns=10, load_ns=500, queue_ns=690, infer_ns=100, output_ns=50)
    assert found.parts() == [
        Part("decode", 1100, 1110),
        Part("load", 1110, 1610),
        Part("wait", 1610, 1700),
        Part("run", 1700, 1800),
        Part("encode", 1800, 1850),
    ]


def test_what_was_refused_while_it_waited_ends_with_its_request() -> None:
    assert asked(5000, decoding_ns=1100, input_ns=10).parts() == [Part("decode", 1100, 1110), Part("wait", 1110, 5000)]


def test_what_was_never_decoded_has_no_parts_and_nothing_lasts_longer_than_its_request() -> None:
    assert asked(5000).parts() == []
    assert asked(1050, decoding_ns=1000, input_ns=10, infer_ns=100).parts() == [
        Part("decode", 1000, 1010),
        Part("run", 1010, 1050),
    ]


def test_what_a_run_does_after_its_request_was_given_up_is_not_in_it() -> None:
    timing = Timing(0)
    found = Asked.of(timing, None, "timeout", 10)
    timing.infer_ns = 5
    assert found.infer_ns == 0
