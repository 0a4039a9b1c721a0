"""Three nodes of Ray on this machine, and what serves on them: modelhost's replicas, or plain Serve over ONNX Runtime.

Run in an environment with Ray (`make .venv-ray/.made`).
"""
