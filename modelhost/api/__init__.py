"""The HTTP surface: codecs, routes, error table, metrics."""
