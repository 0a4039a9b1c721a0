"""What is on disk: model names, versions, files, and what a file says about itself."""

from modelhost.repository.onnx_header import OnnxSummary, read_summary
from modelhost.repository.scan import Index, ModelFile, Repository
from modelhost.repository.wire import OnnxFormatError

__all__ = ["Index", "ModelFile", "OnnxFormatError", "OnnxSummary", "Repository", "read_summary"]
