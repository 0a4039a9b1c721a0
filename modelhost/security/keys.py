"""API keys: what one looks like, how it is kept, how it is written down.

A key is 32 random bytes, so that its plain SHA-256 can be kept: slow hashes are for passwords, which can be
guessed one after another; 2 to the 256 keys cannot, and a slow hash would be a way to keep the host busy.
Who reads the file learns the names and roles, and no key.
"""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from modelhost.errors import ConfigError

#: What a key begins with, so that people, and scanners for secrets that went astray, know it when they see it.
KEY_PREFIX: Final = "mh_"
_KEY_BYTES: Final = 32

#: Shorter ones are refused wherever they come from: whoever made them up did not draw them at random.
MIN_KEY_CHARS: Final = 32
_MAX_KEY_CHARS: Final = 512
#: What RFC 6750 lets a bearer token be.
_KEY: Final = re.compile(rf"[A-Za-z0-9._~+/=-]{{{MIN_KEY_CHARS},{_MAX_KEY_CHARS}}}")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_DIGEST: Final = re.compile(r"sha256:([0-9a-f]{64})")

_FILE_FORM: Final = "NAME  ROLE[,ROLE...]  sha256:HEX"


class Role(StrEnum):
    """What a key is for; it may have several."""

    INFER = "infer"
    """Runs models."""
    MANAGE = "manage"
    """Changes what is loaded and logged; sees what `observe` sees, which is how it knows what to change."""
    OBSERVE = "observe"
    """Sees memory, metrics, statistics."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is kept of a key: whose it is, what it is for, and the SHA-256 by which it is known again."""

    name: str
    roles: frozenset[Role]
    digest: bytes

    def line(self) -> str:
        """Returns its line in the keys' file."""
        return f"{self.name}  {','.join(sorted(self.roles))}  sha256:{self.digest.hex()}"


def new_key(name: str, roles: Iterable[str]) -> tuple[str, Key]:
    """Draws a key at random; returns it, for the only time, and what is kept of it. Raises ConfigError."""
    text = KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)
    return text, key_of(name, ",".join(roles), text, where="the new key")


def key_of(name: str, roles: str, text: str, *, where: str) -> Key:
    """Returns what is kept of a key that is there in full. Raises ConfigError, which never has the key in it."""
    if not _KEY.fullmatch(text):
        raise ConfigError(
            f"{where}: a key has {MIN_KEY_CHARS} to {_MAX_KEY_CHARS} characters of A-Z a-z 0-9 . _ ~ + / = -, "
            f"this one has {len(text)}; `modelhost keys new` makes one"
        )
    return Key(_checked_name(name, where), _roles(roles, where), digest_of(text.encode()))


def digest_of(credential: bytes) -> bytes:
    """Returns what a key is known by."""
    return hashlib.sha256(credential).digest()


def is_long_enough(credential: bytes) -> bool:
    """Says whether this can be a key at all: short ones are refused even where a file has their SHA-256."""
    return MIN_KEY_CHARS <= len(credential) <= _MAX_KEY_CHARS


# --- reading -----------------------------------------------------------------------------------------


def parse_file(text: str, *, where: str) -> tuple[Key, ...]:
    """Returns the keys of a file, one a line; empty lines and comments (`#`) are passed over. Raises ConfigError."""
    keys: list[Key] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            keys.append(_parse_line(words, f"{where} line {number}"))
    return unambiguous(keys, where=where)


def _parse_line(words: list[str], where: str) -> Key:
    found = _DIGEST.fullmatch(words[2]) if len(words) == 3 else None
    if found is None:
        # The line itself is not shown: it may be a key that was put there as it is.
        raise ConfigError(f"{where}: expected `{_FILE_FORM}`, got {len(words)} words of another form")
    return Key(_checked_name(words[0], where), _roles(words[1], where), bytes.fromhex(found[1]))


def parse_variable(text: str, *, where: str) -> tuple[Key, ...]:
    """Returns the keys of an environment variable, `NAME:ROLE[,ROLE...]:KEY` with spaces between.

    Raises ConfigError.
    """
    keys = []
    for number, word in enumerate(text.split(), 1):
        parts = word.split(":")
        if len(parts) != 3:
            raise ConfigError(f"{where}: key {number}: expected NAME:ROLE[,ROLE...]:KEY, got {len(parts)} parts")
        keys.append(key_of(parts[0], parts[1], parts[2], where=f"{where}: key {number}"))
    return unambiguous(keys, where=where)


def unambiguous(keys: Iterable[Key], *, where: str) -> tuple[Key, ...]:
    """Returns the keys, each of which stands there once. Raises ConfigError."""
    found = tuple(keys)
    for what, values in (("name", [key.name for key in found]), ("key", [key.digest for key in found])):
        repeated = next((index for index, value in enumerate(values) if value in values[:index]), None)
        if repeated is not None:
            raise ConfigError(f"{where}: '{found[repeated].name}' has a {what} that is there already")
    return found


def _checked_name(name: str, where: str) -> str:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a key's name has 1 to 64 characters of A-Z a-z 0-9 . _ @ -, got {name[:64]!r}")
    return name


def _roles(text: str, where: str) -> frozenset[Role]:
    try:
        return frozenset(Role(word) for word in text.split(","))
    except ValueError:
        raise ConfigError(f"{where}: expected roles of {', '.join(Role)}, got {text[:64]!r}") from None
