"""Tools for graphs: their inputs, their nodes, and the function that runs them."""
