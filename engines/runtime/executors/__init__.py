"""What runs a graph: ONNX Runtime and TensorRT, each behind one `execute(names, feed)`."""
