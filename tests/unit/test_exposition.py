"""The text format of `/metrics`, read back as Prometheus reads it."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from modelhost.api.exposition import Cumulated, Family, Page, number, quoted
from modelhost.histogram import Histogram


def parsed(page: Page) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page.render().decode())
        for sample in family.samples
    }


def test_one_value_labels_and_histograms_are_read_back() -> None:
    page = Page()
    page.one(Family("a_bytes", "gauge", "Some."), 1 << 60)
    page.by_label(Family("b_total", "counter", "By code.", ("code",)), {"x": 1, "y": 2.5})
    page.labelled(Family("c", "gauge", "Two.", ("m", "v")), [('m="one",v="1"', 0.1)])
    histogram = Histogram((0.5, 2.0))
    for value in (0.1, 0.5, 0.6, 7.0):
        histogram.add(value)
    page.histograms(Family("d_ms", "histogram", "Times."), {"": Cumulated.of(histogram)}, scale=1e3)
    page.histograms(Family("e", "histogram", "By outcome.", ("outcome",)), {'outcome="ok"': Cumulated.of(histogram)})
    found = parsed(page)
    assert found["a_bytes", ()] == 1 << 60
    assert (found["b_total", (("code", "x"),)], found["b_total", (("code", "y"),)]) == (1, 2.5)
    assert found["c", (("m", "one"), ("v", "1"))] == 0.1
    bounds = [found["d_ms_bucket", (("le", bound),)] for bound in ("500.0", "2000.0", "+Inf")]
    assert (bounds, found["d_ms_count", ()]) == ([2, 3, 4], 4)
    assert found["d_ms_sum", ()] == pytest.approx(8200)
    assert found["e_bucket", (("outcome", "ok"), ("le", "0.5"))] == 2
    assert found["e_sum", (("outcome", "ok"),)] == pytest.approx(8.2)


@pytest.mark.parametrize("text", ["plain", 'a"b', "a\\b", "a\nb", "a{b},c=d", "größe & co", "\\n", "\\"])
def test_labels_say_what_they_were_given(text: str) -> None:
    page = Page()
    page.labelled(Family("a", "gauge", "One.", ("m",)), [(f"m={quoted(text)}", 1)])
    assert parsed(page) == {("a", (("m", text),)): 1}


@pytest.mark.parametrize("value", [0, 1, 0.1, 1e300, -5, math.inf, -math.inf, 1 << 70, True])
def test_numbers_are_what_they_were(value: float) -> None:
    assert float(number(value)) == value


def test_what_is_no_number_is_said_so() -> None:
    assert number(math.nan) == "NaN"


def test_a_histogram_counts_a_bound_as_within_it_and_keeps_the_sum() -> None:
    histogram = Histogram((1.0, 2.0))
    for value in (1.0, 1.5, 3.0):
        histogram.add(value)
    assert list(histogram.cumulated()) == [(1.0, 1), (2.0, 2), (math.inf, 3)]
    assert (histogram.count, histogram.sum) == (3, 5.5)
