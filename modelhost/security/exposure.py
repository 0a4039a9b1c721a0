"""Where a host may listen without keys: where only this machine can reach it."""

from __future__ import annotations

import ipaddress

from modelhost.errors import ConfigError


def check_exposure(address: str, *, has_keys: bool, insecure: bool) -> None:
    """Refuses an address that others can reach where anybody could do anything there. Raises ConfigError."""
    if has_keys or insecure or _is_loopback(address):
        return
    raise ConfigError(
        f"server.host is {address or 'every address'}, which other machines can reach, and no API keys are set: make "
        "one with `modelhost keys new NAME --role infer` and name its file in security.keys_file, or listen on "
        "127.0.0.1, or say --insecure where the network is as closed as that"
    )


def _is_loopback(address: str) -> bool:
    """A name may mean anything tomorrow, but for this one."""
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return address == "localhost"
