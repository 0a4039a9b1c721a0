"""Replays traces of requests against policies, of eviction and of placement, without a model, a runtime or a clock."""
