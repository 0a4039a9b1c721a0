"""Alerts: what operators should hear of, at once and not too often. `Alerts` is all that others need.

Nothing here is in a request's way: the host's own figures are looked at where memory is sampled, four times a second,
and what is to be posted goes out on a thread of its own, which starts with the first.
"""

from modelhost.alerts.alert import Alert
from modelhost.alerts.desk import Alerts

__all__ = ["Alert", "Alerts"]
