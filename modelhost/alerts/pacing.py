"""How often one thing is told: at once, and then no sooner than an interval later, with how often it was meanwhile."""

from __future__ import annotations

from modelhost.alerts.alert import Alert


class Pacing:
    """By topic; one thread. Times are the caller's, in seconds, and only grow."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._told_at: dict[tuple[str, str], float] = {}
        self._held: dict[tuple[str, str], Alert] = {}

    def offer(self, alert: Alert, now: float) -> Alert | None:
        """Returns the alert where it is to be told now; else it is held, with others of its topic."""
        topic = alert.topic
        held = self._held.pop(topic, None)
        if held is not None:
            alert = alert.after(held)
        told_at = self._told_at.get(topic)
        if told_at is not None and now - told_at < self._interval_s:
            self._held[topic] = alert
            return None
        self._told_at[topic] = now
        return alert

    def due(self, now: float) -> list[Alert]:
        """Returns what was held and is to be told now, in the order in which it happened."""
        if not self._held:
            return []
        topics = [topic for topic in self._held if now - self._told_at[topic] >= self._interval_s]
        for topic in topics:
            self._told_at[topic] = now
        return sorted((self._held.pop(topic) for topic in topics), key=lambda alert: alert.at)

    def rest(self) -> list[Alert]:
        """Returns all that is held, at the end."""
        held, self._held = self._held, {}
        return sorted(held.values(), key=lambda alert: alert.at)
