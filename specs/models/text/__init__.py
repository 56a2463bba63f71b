"""[torch] What reads and writes text: decoders, encoders, positions."""
