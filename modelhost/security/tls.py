"""Certificate and key for TLS: looked at before anything listens, so that what is wrong is one line at the start."""

from __future__ import annotations

from pathlib import Path

from modelhost.errors import ConfigError


def check_tls(certificate: Path | None, key: Path | None) -> None:
    """Raises ConfigError where the two are not a certificate and its key; none at all is fine.

    Without `key` the certificate's file has to have it, too.
    """
    if certificate is None:
        if key is not None:
            raise ConfigError("server.tls_key is set and server.tls_certificate is not: TLS needs both")
        return
    import ssl  # hosts without TLS do without

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=_refuse)
    except ssl.SSLError as error:
        files = f"{certificate}" if key is None else f"{certificate} and {key}"
        raise ConfigError(
            f"server.tls_certificate, server.tls_key: {files} are no certificate and its key: {error.reason or error}"
        ) from None
    except OSError as error:
        unreadable = next((file for file in (certificate, key) if file is not None and not file.is_file()), certificate)
        raise ConfigError(f"cannot read {unreadable}, of server.tls_*: {error.strerror}") from None


def _refuse() -> str:
    """Called for a key that is encrypted: nobody is there to type a password."""
    raise ConfigError("server.tls_key is encrypted; give the host one that is not, in a file that only it can read")
