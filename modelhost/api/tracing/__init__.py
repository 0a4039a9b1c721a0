"""Requests as OpenTelemetry's spans, where the settings want them: imported nowhere else, and then at the start.

A request leaves its times behind when it is over, which takes a microsecond; a thread makes spans of them, and the
library's own sends those, by OTLP over HTTP.
"""
