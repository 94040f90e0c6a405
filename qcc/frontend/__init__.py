"""Import of ONNX models, and their export: the only code that reads or writes ONNX."""
