"""Graphs as such: their inputs, their nodes, and the forward that runs them."""
