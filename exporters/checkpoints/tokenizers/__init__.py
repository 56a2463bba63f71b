"""A checkpoint's tokenizer as the tokenizer.json that a bundle carries."""
