"""Measurements of modelhost: one command for each case, one fresh process for each measurement.

`python -m benchmarks --help` says which there are. Needs the test dependency group (`make test`
installs it), since models are generated with onnx and the hosts are driven by real clients.
"""
