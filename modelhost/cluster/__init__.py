"""The host as a replica in a cluster that somebody else manages: `modelhost.cluster.ray` for Ray Serve.

Nothing else in modelhost imports this package. Only `ray.py` and `router.py` know Ray, which is an extra: the rest is
what a replica does, where a model lives, what is tried again, and what many say as one.
"""
