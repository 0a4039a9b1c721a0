"""Settings of the front ends."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from modelhost.config.fields import PositiveDuration, PositiveInt, PositiveIntOrAuto, Seconds, Section, SizeOrAuto


class ServerSettings(Section):
    """The HTTP surface."""

    host: str = "127.0.0.1"
    """Address to listen on; one that other machines can reach is refused without API keys (section `security`)."""
    port: int = Field(8080, ge=0, le=65535)
    """Port to listen on; 0 takes a free one."""
    grpc_port: int | None = Field(None, ge=0, le=65535)
    """Port for the same protocol over gRPC, for which the extra `modelhost[grpc]` has to be installed; unset:
    not served, 0 takes a free one."""
    tls_certificate: Path | None = None
    """Certificate in PEM, with those that signed it, for TLS over HTTP and gRPC; unset: no TLS."""
    tls_key: Path | None = None
    """Its key in PEM, without a password; unset: it is in the certificate's file."""
    max_request_bytes: SizeOrAuto = "auto"
    """Largest request body, before and after decompression; auto: a sixteenth of the limit, 1 to 64 MB."""
    max_decoding_bytes: SizeOrAuto = "auto"
    """All bodies being received, decoded or answered at one moment; auto: a quarter of the room for activations."""
    workers: PositiveIntOrAuto = 1
    """Processes that serve together, within one memory limit; auto: one for each core. Not on Windows."""
    run_threads: int = Field(0, ge=0)
    """Inference threads of each process; 0: one for each core. One more takes runs that are known to be brief (5 ms)
    while all of these are at work on longer ones."""
    max_connections: PositiveInt = 512
    """Open connections, or fewer where the process may not open as many files; each may hold 32 KB of headers. One
    more takes the place of one that idles, or is answered 503."""
    max_queue: PositiveInt = 256
    """Requests that may wait for an inference thread; one more is answered 503 `overloaded`."""
    max_queue_per_model: PositiveIntOrAuto = "auto"
    """The same for each model, where its options do not say (`max_queue`); auto: three times what it leaves of
    `max_queue` for the others, so three quarters of it where only one model is asked for."""
    request_timeout_s: Seconds = 120.0
    """Longest time from a request's arrival to its answer; a request may ask for less (`timeout`)."""
    compress_answers: bool = True
    """Answers are compressed where the client asks for gzip or deflate by itself, JSON of 1 KB or more also where
    it lists them among others."""
    read_timeout: PositiveDuration = 10.0
    """Longest pause of a client that is sending a body, and all the time that a request's head has."""
    keep_alive: PositiveDuration = 75.0
    """A connection on which nothing happens is closed after this time: as long as common proxies keep theirs, since a
    shorter one races with clients that pause."""
    drain_timeout: PositiveDuration = 10.0
    """Time that requests in flight get to finish at shutdown."""
