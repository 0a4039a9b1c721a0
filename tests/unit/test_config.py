"""One settings value from file, environment and flags; whatever is wrong is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from modelhost.config import Settings, load_settings, parse_model_options, valid_keys
from modelhost.errors import ConfigError

MB = 1 << 20


def written(tmp_path: Path, text: str) -> Path:
    """Writes a settings file."""
    file = tmp_path / "modelhost.toml"
    file.write_text(text)
    return file


def from_file(tmp_path: Path, text: str) -> Settings:
    return load_settings(file=written(tmp_path, text), environ={})


# --- precedence -------------------------------------------------------------------------------------


def test_the_environment_wins_over_the_file_and_flags_win_over_both(tmp_path: Path) -> None:
    file = written(tmp_path, '[server]\nport = 1\nhost = "file"\nmax_queue = 7\n')
    environ = {"MODELHOST_SERVER_PORT": "2", "MODELHOST_SERVER_HOST": "environment", "PATH": "/bin"}

    found = load_settings(file=file, environ=environ, flags={"server.port": 3, "memory.limit": None})

    assert (found.server.port, found.server.host, found.server.max_queue) == (3, "environment", 7)
    assert found.memory.limit is None
    assert found.server.request_timeout_s == Settings().server.request_timeout_s


def test_the_settings_file_can_be_named_in_the_environment(tmp_path: Path) -> None:
    file = written(tmp_path, "[server]\nport = 9\n")
    assert load_settings(environ={"MODELHOST_CONFIG": str(file)}).server.port == 9


def test_a_settings_file_in_the_working_directory_is_read_where_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(environ={}).server.port == 8080
    written(tmp_path, "[server]\nport = 9\n")
    assert load_settings(environ={}).server.port == 9
    other = tmp_path / "other.toml"
    other.write_text("")
    assert load_settings(file=other, environ={}).server.port == 8080


def test_an_embedding_programs_environment_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELHOST_SERVER_PORT", "1")
    monkeypatch.setenv("SERVER", '{"port": 2}')
    assert Settings().server.port == 8080


@pytest.mark.parametrize("variable", ["MODELHOST_MEMORY_LIMIT", "MODELHOST_MEMORY__LIMIT"])
def test_one_underscore_or_two_name_the_same_key(variable: str) -> None:
    assert load_settings(environ={variable: "256m"}).memory.limit == 256 * MB


def test_every_key_can_be_set_from_the_environment() -> None:
    texts = {"port": "1", "limit": "1GB", "min_free": "1MB", "sample_interval_s": "0.1", "pinned": "a", "preload": "a"}
    texts |= {
        "on_load": "no",
        "keep_statistics": "no",
        "enabled": "no",
        "tracing.enabled": "yes",
        "insecure": "yes",
        "access": "yes",
        "level": "debug",
        "format": "json",
        "eviction": "gdsf",
        "policy": "adaptive",
        "keep_learnt": "no",
        "predictive": "yes",
        "compress_answers": "no",
        "warning": "1MB",
        "critical": "2MB",
        "options": "{a = {}}",
        "version_policy": "{latest = 2}",
        "watch": "yes",
        "isolation": "process",
        "webhook_url": "https://hooks.test/x",
        "kinds": "refusals",
    }
    for key in valid_keys():
        section, name = key.split(".")
        variable = f"MODELHOST_{section}_{name}".upper()
        found = load_settings(environ={variable: texts.get(key, texts.get(name, "7"))})
        assert getattr(getattr(found, section), name) != getattr(getattr(Settings(), section), name), variable


# --- forms ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a,b", " a , b ,", '["a", "b"]'])
def test_a_list_in_the_environment_is_written_with_commas_or_as_toml(text: str) -> None:
    assert load_settings(environ={"MODELHOST_MODELS_PINNED": text}).models.pinned == ("a", "b")


def test_a_table_in_the_environment_is_written_as_toml() -> None:
    environ = {"MODELHOST_MODELS_OPTIONS": '{digits = {pinned = true, load_peak_bytes = "3MB"}}'}
    options = load_settings(environ=environ).models.options["digits"]
    assert options.pinned
    assert options.load_peak_bytes == 3 * MB


def test_preload_entries_are_names_or_tables(tmp_path: Path) -> None:
    text = '[models]\npreload = ["a", {name = "b", optional = true}, {name = "c", version = 3}]'
    found = from_file(tmp_path, text).models.preload
    assert [(entry.name, entry.version, entry.optional) for entry in found] == [
        ("a", None, False),
        ("b", None, True),
        ("c", "3", False),
    ]
    assert [entry.name for entry in load_settings(environ={"MODELHOST_MODELS_PRELOAD": "x,y"}).models.preload] == [
        "x",
        "y",
    ]


def test_sizes_and_thresholds_are_parsed(tmp_path: Path) -> None:
    text = '[server]\nmax_request_bytes = "1MB"\n[memory]\nlimit = "256MB"\nmin_free = 1048576\n'
    text += 'warning = "66%"\ncritical = "+70MB"\n'
    found = from_file(tmp_path, text)
    assert found.memory.limit == 256 * MB
    assert (found.memory.warning.kind, found.memory.critical.kind) == ("share", "offset")
    assert found.memory.min_free == MB
    assert found.server.max_request_bytes == MB
    assert found.server.max_decoding_bytes == "auto"


def test_times_of_connections_are_durations(tmp_path: Path) -> None:
    server = from_file(tmp_path, '[server]\nread_timeout = "500ms"\nkeep_alive = "2m"\ndrain_timeout = 30').server
    assert (server.read_timeout, server.keep_alive, server.drain_timeout) == (0.5, 120, 30)


def test_settings_are_frozen() -> None:
    settings = Settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.server.port = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.server = settings.server


# --- what is wrong ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[memory]\nlimt = 1", ["'memory.limt'", "'memory.limit'"]),
        ("[memroy]\nlimit = 1", ["'memroy'", "'memory'"]),
        ("[server]\nmax_waiting = 1", ["'server.max_waiting'", "'pool.max_waiting'"]),
        ("[server]\nmax_queu = 1", ["'server.max_queu'", "'server.max_queue'"]),
        ("[models.options.a]\npined = true", ["'models.options.a.pined'", "'pinned'"]),
        ('[models]\npreload = [{name = "a", optinal = true}]', ["'models.preload.0.optinal'", "'optional'"]),
        ("[server]\nzzzzzzzz = 1", ["unknown key 'server.zzzzzzzz'"]),
    ],
)
def test_an_unknown_key_in_the_file_names_the_nearest_valid_one(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        from_file(tmp_path, text)
    assert str(tmp_path / "modelhost.toml") in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("MODELHOST_MEMORY_LIMT", "MODELHOST_MEMORY_LIMIT"),
        ("MODELHOST_MEMORY__WARNNG", "MODELHOST_MEMORY_WARNING"),
        ("MODELHOST_PORT", "MODELHOST_SERVER_PORT"),
    ],
)
def test_an_unknown_variable_names_the_nearest_valid_one(variable: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown environment variable {variable}; did you mean {nearest}\\?"):
        load_settings(environ={variable: "1"})


def test_an_unknown_flag_names_the_nearest_valid_key() -> None:
    with pytest.raises(ConfigError, match=r"'server.prot'; did you mean 'server.port'\?"):
        load_settings(environ={}, flags={"server.prot": 1})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('[memory]\nlimit = "much"', ["'memory.limit'", "256MB", "'much'"]),
        ('[memory]\nwarning = "150%"', ["'memory.warning'", "66%", "'150%'"]),
        ("[memory]\nsample_interval_s = 2.0", ["'memory.sample_interval_s'", "0.5"]),
        ("[server]\nport = 70000", ["'server.port'", "65535", "70000"]),
        ("[pool]\nmax_waiting = 0", ["'pool.max_waiting'"]),
        ('[server]\nread_timeout = "soon"', ["'server.read_timeout'", "500ms", "'soon'"]),
        ("[server]\nkeep_alive = 0", ["'server.keep_alive'", "greater than 0"]),
        ("[pool]\nwait_timeout_s = 0", ["'pool.wait_timeout_s'"]),
        ('[models.options.a]\noptimization = "most"', ["'models.options.a.optimization'", "extended", "'most'"]),
        ("memory = 5", ["'memory'"]),
        ("[memory]\nlimit = -1", ["'memory.limit'", "negative"]),
        ("[server]\nport = 70000\n[pool]\nmax_waiting = 0", ["'server.port'", "'pool.max_waiting'"]),
    ],
)
def test_a_bad_value_names_its_key_and_what_is_accepted(tmp_path: Path, text: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        from_file(tmp_path, text)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("MODELHOST_MEMORY_LIMIT", "much"),
        ("MODELHOST_SERVER_PORT", "http"),
        ("MODELHOST_MODELS_OPTIONS", "{"),
        ("MODELHOST_MODELS_PINNED", "[1"),
        ("MODELHOST_MODELS_PRELOAD", '[{nam = "a"}]'),
    ],
)
def test_a_bad_value_in_the_environment_names_the_variable(variable: str, text: str) -> None:
    with pytest.raises(ConfigError, match=f"^{variable}: "):
        load_settings(environ={variable: text})


def test_a_file_that_is_not_there_or_not_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the settings file .*none\.toml"):
        load_settings(file=tmp_path / "none.toml", environ={})
    with pytest.raises(ConfigError, match=r"modelhost\.toml is not TOML"):
        from_file(tmp_path, "[server")


@pytest.mark.parametrize(
    ("table", "words"),
    [({"pined": True}, "did you mean 'pinned'"), ({"resident_bytes": "lots"}, "'resident_bytes'")],
)
def test_a_models_own_options_are_checked_in_the_same_way(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        parse_model_options(table, source="digits/model.toml")
    assert str(error.value).startswith("digits/model.toml: ")
