"""Where alerts are made, paced, logged, counted, and handed to who posts them. Event-loop thread."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import orjson

from modelhost import __version__
from modelhost.alerts.alert import Alert
from modelhost.alerts.pacing import Pacing
from modelhost.alerts.watch import Watch
from modelhost.config import AlertKind
from modelhost.host import Host

if TYPE_CHECKING:
    from modelhost.alerts.sender import Poster, Sender

log = logging.getLogger("modelhost")

#: What is logged here: of the others a line stands there already, from who has noticed.
_LOGGED: Final = frozenset({"refusals"})

#: What the body says of its own form.
SCHEMA: Final = 1


class Alerts:
    """Those of one open host. `outcomes` returns how many requests there were by their outcome."""

    def __init__(
        self,
        host: Host,
        outcomes: Callable[[], Mapping[str, int]],
        *,
        secret: bytes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._outcomes, self._clock = host, outcomes, clock
        self._settings = host.settings.alerts
        self._secret = secret
        self._pacing = Pacing(self._settings.min_interval)
        self._watch: Watch | None = None
        self.happened: Counter[AlertKind] = Counter()
        """What there was to tell, by kind, whether or not it was told by itself."""
        self.sender: Sender | None = None
        """Who posts them; None where no webhook is named."""

    def start(self) -> None:
        """Begins to look, at every sample of memory; the host is open."""
        self._watch = Watch(self._host, self._outcomes)
        if self._settings.webhook_url is not None:
            self.sender = self._sender(self._settings.webhook_url)
        self._host.memory.on_change(self.look)

    def look(self) -> None:
        """Tells what is new, and what was held back for long enough."""
        if self._watch is None:
            return
        now = self._clock()
        for alert in self._watch.look():
            if alert.kind in self._settings.kinds:
                self.happened[alert.kind] += alert.count
                told = self._pacing.offer(alert, now)
                if told is not None:
                    self._tell(told)
        for alert in self._pacing.due(now):
            self._tell(alert)

    async def stop(self) -> None:
        """Tells what is left, and gives it some time to be posted. Harmless where nothing was begun."""
        if self._watch is None:
            return
        self.look()
        self._watch = None
        for alert in self._pacing.rest():
            self._tell(alert)
        sender = self.sender
        if sender is None:
            return
        loop, patience_s = asyncio.get_running_loop(), self._settings.drain_timeout
        ended = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop has not waited for it
                loop.call_soon_threadsafe(ended.set)

        sender.close(patience_s, tell)
        try:
            async with asyncio.timeout(patience_s):
                await ended.wait()
        except TimeoutError:
            log.warning("the host ends, and not all alerts were posted")

    def _tell(self, alert: Alert) -> None:
        if alert.kind in _LOGGED:
            log.warning("%s%s", alert.text, f" ({alert.count} times)" if alert.count > 1 else "")
        if self.sender is not None:
            self.sender.put(orjson.dumps({"schema": SCHEMA, **alert.as_dict(), "host": self._said_of_host()}))

    def _said_of_host(self) -> dict[str, Any]:
        memory = self._host.memory
        return {
            "name": socket.gethostname(),
            "version": __version__,
            "worker": self._host.siblings.number,
            "ready": self._host.is_ready,
            "level": memory.level.label,
            "usage_bytes": memory.usage_bytes,
            "limit_bytes": memory.thresholds.limit_bytes,
            "conditions": [condition.name for condition in self._host.conditions.snapshot()],
        }

    def _sender(self, url: str) -> Sender:
        from modelhost.alerts.sender import Sender  # only hosts that post have it

        settings, secret = self._settings, self._secret

        def poster() -> Poster:
            from modelhost.alerts.webhook import Webhook  # on the thread, with the first alert

            return Webhook(url, secret=secret, timeout_s=settings.timeout)

        return Sender(poster, max_waiting=settings.max_waiting, retries=settings.retries)
