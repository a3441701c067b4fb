"""Graphs of torch.fx."""
