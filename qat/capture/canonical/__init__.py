"""The canonical form of a graph: products are layers, dropout follows training."""
