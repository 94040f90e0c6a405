"""qcc: a plug-in based compiler from ONNX models to proven integer-only artifacts."""

__version__ = "0.1.0"
