"""What several passes know and use: edits of a graph, types, weights computed when read, what stays float32."""
