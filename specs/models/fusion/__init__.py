"""[torch] What joins modalities: pairs, any set, and media before a language model."""
