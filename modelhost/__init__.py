"""modelhost: many ONNX models from little memory.

This module only names the version, so that importing the package costs nothing: the embedded host is
`modelhost.host.Host`, the memory manager by itself is `modelhost.memory.MemoryManager`.
"""

__version__ = "0.1.0"
