"""What reads and writes text: kinds `text.*`."""
