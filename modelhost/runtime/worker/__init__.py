"""Sessions in processes of their own: what crosses between them, the worker's side, and the host's.

Both sides: `wire` (messages), `segment` (shared memory), `packing` (tensors in it). In the worker: `template`,
which is forked, and `process`, what a fork does. In the host: `nursery` (starts them, knows how they end and
what they hold), `session` and `channel` (runs), `model` (what the pool sees).
"""
