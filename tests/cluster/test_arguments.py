"""What the application builder takes, and the settings that it makes of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelhost.cluster.arguments import Arguments
from modelhost.errors import ConfigError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_command_line_s_words_are_values() -> None:
    given = Arguments.of({"replicas": "3", "cpus": "0.5", "ingress": "2"})
    assert (given.replicas, given.cpus, given.ingress) == (3, 0.5, 2)
    assert Arguments.of({}).ingress == "head"


@pytest.mark.parametrize(("given", "said"), [({"replica": "3"}, "replica: "), ({"replicas": "none"}, "replicas: ")])
def test_what_is_not_known_is_named(given: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Arguments.of(given)


def test_a_replica_has_a_share_and_absolute_paths_and_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[models]\ndirectory = "zoo"\n[prepare]\ncache = "made"\n[pool]\nmax_waiting = 7\n'
    )
    settings = Arguments.of({"config": "mine.toml"}).settings()
    assert settings.memory.limit == 1 << 30
    assert settings.models.directory == tmp_path / "zoo"
    assert settings.artifact_cache == tmp_path / "made"
    assert settings.pool.max_waiting == 7
    assert not settings.state.keep_statistics
    settings = Arguments.of({"config": "mine.toml", "memory": "600MB", "models": "others"}).settings()
    assert (settings.memory.limit, settings.models.directory) == (600 << 20, tmp_path / "others")


@pytest.mark.parametrize(
    "line", ["[server]\nworkers = 2", "[server]\ngrpc_port = 8001", '[memory]\npolicy = "adaptive"']
)
def test_what_only_a_host_that_listens_has_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "modelhost.toml").write_text(line)
    with pytest.raises(ConfigError):
        Arguments.of({}).settings()


def test_a_share_that_leaves_nothing_for_models_stops_the_start() -> None:
    with pytest.raises(ConfigError, match="leaves nothing for models"):
        Arguments.of({"memory": "20MB"}).settings()
