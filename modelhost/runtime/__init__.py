"""Runtimes: what loads and runs models. Import `modelhost.runtime.ort` only where models are run."""
