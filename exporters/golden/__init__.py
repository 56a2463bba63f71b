"""What a bundle is held against: torch's answers, the sizes they have, and how far torch itself is from float64."""
