"""Other people's servers around the same session, to compare with: one small program for each.

Each runs in a virtual environment of its own, which `python -m benchmarks peers --install` makes, and
is told by three variables what to serve (`common.py`). `catalogue.py` says which there are.
"""
