"""A replica's own share of memory, beside others in the same group."""

from __future__ import annotations

import pytest

from modelhost.cluster.share import ShareProbe, share_of
from modelhost.config import MemorySettings
from modelhost.errors import ConfigError
from modelhost.memory.probe import Probe, Usage

MB = 1 << 20


class Around(Probe):
    """A group of 1 GB, of which others have so much."""

    def __init__(self, own_bytes: int, usage_bytes: int, limit_bytes: int = 1024 * MB) -> None:
        self.own_bytes, self.usage_bytes, self.limit_bytes = own_bytes, usage_bytes, limit_bytes

    def own_usage(self) -> Usage:
        return Usage(self.own_bytes, {"anonymous_bytes": self.own_bytes})

    def usage(self) -> Usage:
        return Usage(self.usage_bytes)

    def refresh(self) -> None:
        self.limit_bytes //= 2


def test_what_others_have_is_not_counted_as_long_as_there_is_room() -> None:
    probe = ShareProbe(256 * MB, around=Around(100 * MB, 700 * MB))
    assert (probe.limit_bytes, probe.usage().usage_bytes) == (256 * MB, 100 * MB)


def test_where_the_group_has_less_room_than_the_share_that_is_the_room() -> None:
    probe = ShareProbe(256 * MB, around=Around(100 * MB, 1000 * MB))
    assert probe.limit_bytes - probe.usage().usage_bytes == 24 * MB


def test_the_share_is_never_more_than_the_group_and_follows_it() -> None:
    probe = ShareProbe(800 * MB, around=Around(100 * MB, 200 * MB))
    assert probe.limit_bytes == 800 * MB
    probe.refresh()
    assert probe.limit_bytes == 512 * MB
    probe.configure(300 * MB)
    probe.refresh()
    assert probe.limit_bytes == 256 * MB


def test_a_share_has_to_be_said() -> None:
    with pytest.raises(ConfigError, match="its share"):
        share_of(MemorySettings())
    with pytest.raises(ConfigError, match="a share of its own"):
        ShareProbe(MB, around=Around(0, 0)).configure(None)


def test_the_process_that_asks_is_what_is_read() -> None:
    probe = share_of(MemorySettings(limit="100GB"))
    assert probe.usage().usage_bytes > 10 * MB
    assert probe.committed_bytes() > 10 * MB
