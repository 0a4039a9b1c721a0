"""Keys: how they are made, kept, written down, read again; and where a host may listen without any."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path

import pytest

from modelhost.config import SecuritySettings
from modelhost.errors import ConfigError
from modelhost.security import private_file
from modelhost.security.exposure import check_exposure
from modelhost.security.keys import Key, Role, key_of, new_key, parse_file, parse_variable
from modelhost.security.ring import VARIABLE, KeyRing, take_from
from modelhost.security.secret import read_secret

LONG = "k" * 32


def file_of(tmp_path: Path, *keys: Key, mode: int = 0o600) -> Path:
    file = tmp_path / "keys"
    file.write_text("# who may do what\n\n" + "".join(f"{key.line()}\n" for key in keys))
    file.chmod(mode)
    return file


# --- what a key is ------------------------------------------------------------------------------------------


def test_a_new_key_is_random_and_only_its_hash_is_kept() -> None:
    (text, key), (other, _) = new_key("app", ["infer"]), new_key("app", ["infer"])
    assert text != other
    assert text.startswith("mh_")
    assert len(text) == 46  # 256 bits
    assert key.digest == hashlib.sha256(text.encode()).digest()
    assert text not in repr(key)
    assert text not in key.line()
    assert parse_file(key.line(), where="file") == (key,)


@pytest.mark.parametrize("text", ["", "short", "k" * 31, "k" * 513, "k" * 31 + " ", "k" * 31 + "\n", "ä" * 40])
def test_short_long_and_unprintable_keys_are_refused_without_being_shown(text: str) -> None:
    with pytest.raises(ConfigError, match="32 to 512 characters") as caught:
        key_of("app", "infer", text, where="here")
    assert not text or text not in str(caught.value)


def test_a_short_key_is_refused_even_where_the_file_has_its_hash(tmp_path: Path) -> None:
    short = "k" * 31
    key = Key("app", frozenset({Role.INFER}), hashlib.sha256(short.encode()).digest())
    assert KeyRing(file_of(tmp_path, key)).find(short.encode()) is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("app infer", "file line 1: expected `NAME  ROLE"),
        ("app infer sha256:00", "expected `NAME  ROLE"),
        ("app infer sha256:" + "A" * 64, "expected `NAME  ROLE"),
        (f"app infer {LONG}", "expected `NAME  ROLE"),
        ("app infer,root sha256:" + "0" * 64, "expected roles of infer, manage, observe, got 'infer,root'"),
        ("app infer, sha256:" + "0" * 64, "expected roles"),
        ("a/b infer sha256:" + "0" * 64, "a key's name has"),
        ("\n".join(f"app infer sha256:{digit * 64}" for digit in "01"), "'app' has a name that is there already"),
        ("\n".join(f"{name} infer sha256:" + "0" * 64 for name in "ab"), "'b' has a key that is there already"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_by_line(text: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_file(text, where="file")
    assert problem in str(caught.value)
    assert LONG not in str(caught.value)


@pytest.mark.parametrize(
    "text", ["app:infer", f"app:infer:{LONG}:x", "app:infer:short", f"app::{LONG}", f"a b:infer:{LONG}"]
)
def test_what_is_wrong_with_the_variable_is_said_without_the_key(text: str) -> None:
    with pytest.raises(ConfigError, match="MODELHOST_API_KEYS: key 1: ") as caught:
        parse_variable(text, where="MODELHOST_API_KEYS")
    assert LONG not in str(caught.value)


# --- keys in force ------------------------------------------------------------------------------------------


def test_nothing_configured_is_no_ring() -> None:
    assert KeyRing.of(SecuritySettings()) is None


def test_keys_are_found_by_what_they_are_and_by_nothing_else(tmp_path: Path) -> None:
    (one, first), (two, second) = new_key("one", ["infer"]), new_key("two", ["manage", "observe"])
    ring = KeyRing.of(SecuritySettings(keys_file=file_of(tmp_path, first, second)))
    assert ring is not None
    assert ring.find(one.encode()) == first
    assert ring.find(two.encode()) == second
    for wrong in (
        b"",
        b"\xff" * 40,
        one[:-1].encode(),
        one.encode() + b"x",
        one.upper().encode(),
        first.digest.hex().encode(),
    ):
        assert ring.find(wrong) is None


def test_a_reload_takes_keys_in_and_out_and_an_unusable_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (one, first), (two, second) = new_key("one", ["infer"]), new_key("two", ["infer"])
    ring = KeyRing(file_of(tmp_path, first))
    file = file_of(tmp_path, second)
    with caplog.at_level(logging.INFO, "modelhost"):
        ring.reload()
    assert (ring.find(one.encode()), ring.find(two.encode())) == (None, second)
    assert caplog.messages == ["1 API keys are in force; gone: one"]
    for text in ("", "# none\n", "nonsense\n"):
        file.write_text(text)
        with pytest.raises(ConfigError):
            ring.reload()
        assert ring.find(two.encode()) == second
    file.unlink()
    with pytest.raises(ConfigError, match=r"cannot read security.keys_file .*: No such file"):
        ring.reload()
    assert ring.find(two.encode()) == second


def test_keys_of_the_environment_are_taken_out_of_it(tmp_path: Path) -> None:
    environ = {VARIABLE: f"app:infer:{LONG}\n ops:manage,observe:{LONG[::-1]}x", "PATH": "/bin"}
    keys = take_from(environ)
    assert environ == {"PATH": "/bin"}
    assert [(key.name, sorted(key.roles)) for key in keys] == [("app", ["infer"]), ("ops", ["manage", "observe"])]
    _, mine = new_key("mine", ["infer"])
    ring = KeyRing.of(SecuritySettings(keys_file=file_of(tmp_path, mine)), keys)
    assert ring is not None
    assert ring.find(LONG.encode()) == keys[0]
    assert take_from(environ) == ()


def test_the_same_name_in_the_file_and_the_environment_is_refused(tmp_path: Path) -> None:
    _, mine = new_key("app", ["infer"])
    with pytest.raises(ConfigError, match="'app' has a name that is there already"):
        KeyRing(file_of(tmp_path, mine), parse_variable(f"app:infer:{LONG}", where=VARIABLE))


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        (0o600, None),
        (0o400, None),
        (0o440, "others may read it"),
        (0o644, "others may read it"),
        (0o620, "others may change it"),
        (0o666, "others may read and change it"),
        (0o711, "others may run it"),
    ],
)
@pytest.mark.parametrize("reader", ["keys", "secret"])
def test_a_file_that_is_not_its_owners_alone_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reader: str, mode: int, words: str | None
) -> None:
    file = file_of(tmp_path, new_key("app", ["infer"])[1], mode=mode)
    setting = "security.keys_file" if reader == "keys" else "alerts.secret_file"
    KeyRing(file) if reader == "keys" else read_secret(file)
    assert caplog.messages == ([] if words is None else [f"{setting} {file}: {words}; chmod 600 it"])


def test_where_files_have_no_modes_nothing_is_said_of_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private_file, "_HAS_MODES", False)
    assert private_file.read_private(file_of(tmp_path, mode=0o666), setting="a.file", max_bytes=100)
    assert caplog.messages == []


def test_what_is_no_file_of_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        KeyRing(tmp_path)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="is not a regular file"):  # and nobody is waited for
        KeyRing(pipe)
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not text"):
        KeyRing(binary)
    binary.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(ConfigError, match="more than 1048576 bytes"):
        KeyRing(binary)


# --- where it may listen ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_this_machine_alone_needs_no_keys(address: str) -> None:
    check_exposure(address, has_keys=False, insecure=False)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "10.1.2.3", "192.168.0.1", "example.org", "fe80::1"])
def test_others_need_keys_or_the_word_of_who_starts_it(address: str) -> None:
    with pytest.raises(ConfigError, match=r"no API keys are set: make one with .*--insecure"):
        check_exposure(address, has_keys=False, insecure=False)
    check_exposure(address, has_keys=True, insecure=False)
    check_exposure(address, has_keys=False, insecure=True)
