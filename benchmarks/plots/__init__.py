"""Plots and pages drawn from records: SVG in one HTML file, with nothing loaded from elsewhere.

No plotting library: one drawing has to serve light and dark, which takes colours by CSS class, and a library that
writes fixed colours would draw everything twice; and what is drawn are lines, bands and bars of three kinds of plot.
Nothing here measures, and nothing here decides whether something holds.
"""
