"""A checkpoint's files: config.json as typed values, tensors by name, and recipes from tensors to our parameters."""
