"""Any ONNX file as the source of a bundle: read, said in one way, run as its own oracle."""
