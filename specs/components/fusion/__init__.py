"""What joins modalities: kinds `fusion.*`."""
