"""Prepared models: artifacts, their manifests, and the child process that makes them. Knows no ONNX Runtime."""

from modelhost.prepare.footprint import RunFootprint
from modelhost.prepare.index import Identity
from modelhost.prepare.manifest import Manifest, Variant
from modelhost.prepare.store import Artifact, ArtifactStore, Standing

__all__ = ["Artifact", "ArtifactStore", "Identity", "Manifest", "RunFootprint", "Standing", "Variant"]
