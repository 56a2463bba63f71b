"""Eight bits: which products, by which ranges, scaled how; and the two ways to write it into a graph."""
