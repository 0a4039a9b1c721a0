"""Replays traces of requests against eviction policies, without a model, a runtime or a clock."""
