"""What an ONNX file says of itself, read with the standard library alone: operators, types, work, precision."""
