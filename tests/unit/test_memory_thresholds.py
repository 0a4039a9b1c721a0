"""Thresholds in bytes from settings, limit and baseline; impossible ones are explained with figures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelhost.config import MemorySettings
from modelhost.errors import ConfigError
from modelhost.memory import Thresholds
from modelhost.memory.thresholds import resolve

MB = 1 << 20


def resolved(limit_mb: int = 256, baseline_mb: int = 115, **settings: Any) -> Thresholds:
    return resolve(MemorySettings(**settings), limit_bytes=limit_mb * MB, baseline_bytes=baseline_mb * MB)


@pytest.mark.parametrize(
    ("limit_mb", "baseline_mb", "warning_mb", "critical_mb"),
    [
        (256, 60, 172, 192),  # a quarter for activations, a gap of 20 MB
        (256, 115, 172, 192),
        (1024, 60, 768 - 51.2, 768),  # a gap of 5 %
        (128, 60, 78, 96),  # no room for the gap: the middle of baseline and critical
        (100, 60, 65, 70),  # min_free is more than a quarter
    ],
)
def test_automatic_thresholds(limit_mb: int, baseline_mb: int, warning_mb: float, critical_mb: float) -> None:
    found = resolved(limit_mb, baseline_mb)
    assert found.warning_bytes == pytest.approx(warning_mb * MB, abs=1)
    assert found.critical_bytes == pytest.approx(critical_mb * MB, abs=1)
    assert found.min_free_bytes == 30 * MB
    assert found.activation_room_bytes == found.limit_bytes - found.critical_bytes


@pytest.mark.parametrize(
    ("warning", "critical", "warning_mb", "critical_mb"),
    [
        ("170MB", "200MB", 170, 200),
        ("66%", "75%", 168.96, 192),
        ("+50MB", "+70MB", 165, 185),
        ("auto", "+70MB", 165, 185),
        ("+50MB", "auto", 165, 192),
        ("66%", "226MB", 168.96, 226),  # exactly min_free is left
    ],
)
def test_thresholds_as_bytes_shares_and_offsets(
    warning: str, critical: str, warning_mb: float, critical_mb: float
) -> None:
    found = resolved(warning=warning, critical=critical)
    assert found.warning_bytes == pytest.approx(warning_mb * MB, abs=1)
    assert found.critical_bytes == critical_mb * MB


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"critical": "227MB"}, ["at most 226.0 MB", "memory.critical = 227MB", "limit 256.0 MB", "min_free 30.0 MB"]),
        ({"critical": "+200MB"}, ["critical 315.0 MB", "baseline 115.0 MB"]),
        ({"critical": "90%"}, ["critical 230.4 MB (memory.critical = 90%)"]),
        ({"warning": "192MB"}, ["memory.warning has to be below memory.critical", "warning 192.0 MB"]),
        ({"warning": "+80MB", "critical": "+70MB"}, ["warning 195.0 MB", "critical 185.0 MB"]),
        ({"warning": "115MB"}, ["memory.warning has to be above the baseline", "baseline 115.0 MB"]),
        ({"warning": "40%"}, ["memory.warning has to be above the baseline", "warning 102.4 MB"]),
        ({"min_free": "141MB"}, ["leaves nothing for models", "115.0 MB", "141.0 MB", "at least 276.0 MB"]),
    ],
)
def test_impossible_thresholds_are_explained(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        resolved(**settings)
    for word in words:
        assert word in str(error.value)


def test_a_limit_below_what_the_host_itself_holds_says_what_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"memory.limit 64.0 MB leaves nothing.*60.0 MB.*at least 110.0 MB"):
        resolved(64, 60)


@given(
    limit=st.integers(100 * MB, 64 << 30),
    baseline_share=st.floats(0.01, 0.9),
    warning=st.sampled_from(["auto", "66%", "+50MB"]),
    critical=st.sampled_from(["auto", "75%", "+70MB"]),
)
def test_resolved_thresholds_are_in_order_or_an_error(
    limit: int, baseline_share: float, warning: str, critical: str
) -> None:
    baseline = int(limit * baseline_share)
    settings = MemorySettings(warning=warning, critical=critical)  # type: ignore[arg-type]
    try:
        found = resolve(settings, limit_bytes=limit, baseline_bytes=baseline)
    except ConfigError:
        return
    assert baseline < found.warning_bytes < found.critical_bytes <= limit - 30 * MB
    assert found.warning_bytes - found.hysteresis_bytes > baseline
    assert 0 <= found.hysteresis_bytes <= limit / 64


@given(limit=st.integers(50 * MB, 64 << 30), baseline=st.integers(1 * MB, 64 << 30))
def test_automatic_thresholds_fit_every_limit_with_room_above_the_baseline(limit: int, baseline: int) -> None:
    try:
        found = resolve(MemorySettings(), limit_bytes=limit, baseline_bytes=baseline)
    except ConfigError:
        assert max(limit // 4, 30 * MB) + baseline + 1 >= limit - 1
    else:
        assert found.critical_bytes > baseline
