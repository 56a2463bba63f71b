"""A bundle against its reference data: what differs, whether it may, and where a graph first left the truth."""
