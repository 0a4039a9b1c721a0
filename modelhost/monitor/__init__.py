"""What views on a host are made of: its state in one object, the last hour, and a stream of both.

Knows no HTTP: `modelhost.api.monitor` has the routes. Event-loop thread. See docs/monitoring.md for the objects.
"""

from modelhost.monitor.feed import Feed

__all__ = ["Feed"]
