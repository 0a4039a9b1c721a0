"""Who stays where one connection too many comes, and how many there may be."""

from __future__ import annotations

import resource

import pytest

from modelhost.api import connections
from modelhost.api.connections import SPARE_AFTER_S, Door, connection_limit
from modelhost.config import ServerSettings
from modelhost.errors import ConfigError


class FakeConnection:
    def __init__(self, idle_s: float = 0, slow_s: float = 0) -> None:
        self._idle_s, self._slow_s, self.is_spared, self.looks = idle_s, slow_s, False, 0
        self.unread = False

    def idle_s(self, now: float) -> float:
        self.looks += 1
        return self._idle_s

    def slow_s(self, now: float) -> float:
        return self._slow_s

    def has_unread(self) -> bool:
        return self.unread

    def spare(self) -> None:
        self.is_spared = True


def spared(others: list[FakeConnection]) -> list[int]:
    """The indices of those that went for a newcomer, all places taken."""
    newcomer = FakeConnection(idle_s=100)
    assert Door(len(others)).has_room([*others, newcomer], newcomer, 0) == any(one.is_spared for one in others)
    assert not newcomer.is_spared
    return [index for index, one in enumerate(others) if one.is_spared]


def test_nobody_goes_while_there_is_room() -> None:
    others = [FakeConnection(idle_s=100) for _ in range(3)]
    assert Door(3).has_room(others, others[0], 0)
    assert not any(one.is_spared for one in others)


def test_the_one_that_has_idled_the_longest_goes_first() -> None:
    assert spared([FakeConnection(idle_s=2), FakeConnection(idle_s=5), FakeConnection(idle_s=3)]) == [1]


def test_one_whose_request_has_come_and_was_not_read_yet_has_not_idled() -> None:
    others = [FakeConnection(idle_s=2), FakeConnection(idle_s=9)]
    others[1].unread = True
    assert spared(others) == [0]


def test_one_that_is_slow_goes_where_none_idles() -> None:
    assert spared([FakeConnection(slow_s=2), FakeConnection(slow_s=9), FakeConnection()]) == [1]
    assert spared([FakeConnection(slow_s=9), FakeConnection(idle_s=2), FakeConnection(slow_s=20)]) == [1]


def test_those_that_work_stay_and_so_do_those_that_have_just_come() -> None:
    assert spared([FakeConnection(), FakeConnection(idle_s=SPARE_AFTER_S / 2), FakeConnection()]) == []


def test_those_that_linger_do_not_count() -> None:
    others = [FakeConnection() for _ in range(3)]
    door = Door(2)
    door.lingering.add(others[0])
    assert door.has_room(others, others[2], 0)


def test_a_flood_of_newcomers_is_no_flood_of_looks() -> None:
    others = [FakeConnection() for _ in range(3)]
    door = Door(2)
    assert [door.has_room(others, others[2], 0.001 * turn) for turn in range(50)] == [False] * 50
    assert others[0].looks == 1
    others[0]._idle_s = 3
    assert door.has_room(others, others[2], 1)


# --- descriptors ---------------------------------------------------------------------------------------------


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """A process that has 20 files open, and may open so many."""
    limits = {"soft": 1000, "hard": 1000}

    def change(kind: int, pair: tuple[int, int]) -> None:
        limits["soft"], limits["hard"] = pair

    monkeypatch.setattr(connections, "_open_files", lambda: 20)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits["soft"], limits["hard"]))
    monkeypatch.setattr(resource, "setrlimit", change)
    return limits


def test_the_setting_counts_where_there_are_descriptors_enough(files: dict[str, int]) -> None:
    assert connection_limit(ServerSettings(max_connections=300)) == 300
    assert files["soft"] == 1000


def test_the_soft_limit_is_raised_as_far_as_is_needed(files: dict[str, int]) -> None:
    files |= {"soft": 256, "hard": 100_000}
    assert connection_limit(ServerSettings(max_connections=5000)) == 5000
    assert 5100 <= files["soft"] <= 5200


def test_there_are_fewer_connections_where_there_are_fewer_descriptors(files: dict[str, int]) -> None:
    files |= {"soft": 256, "hard": 400}
    assert connection_limit(ServerSettings(max_connections=512)) == 400 - 20 - 128
    assert connection_limit(ServerSettings(max_connections=512, grpc_port=0)) == (400 - 20 - 128) // 2


def test_no_descriptors_for_connections_is_an_error_with_figures(files: dict[str, int]) -> None:
    files |= {"soft": 100, "hard": 148}
    with pytest.raises(ConfigError, match=r"may open 148 files, 20 are open.*ulimit -n\) to 149"):
        connection_limit(ServerSettings())


@pytest.mark.parametrize("soft", [resource.RLIM_INFINITY, 256])
def test_no_limit_is_no_bound(files: dict[str, int], soft: int) -> None:
    files |= {"soft": soft, "hard": resource.RLIM_INFINITY}
    assert connection_limit(ServerSettings(max_connections=50_000)) == 50_000
