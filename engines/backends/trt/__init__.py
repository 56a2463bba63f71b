"""TensorRT and TensorRT-RTX as compilers, in a process of their own: its words in ours, what versions differ in."""
