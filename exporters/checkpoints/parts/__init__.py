"""What the configs of several families have in common: towers, decoders, positions, pictures, sounds."""
