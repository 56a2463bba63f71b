"""Plain data out of YAML -> a checked `Spec`, or the first problem in words, with its file and line."""
