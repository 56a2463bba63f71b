"""What a decode step is made of, found in a graph: linears with their norms, attention with its rotation, views."""
