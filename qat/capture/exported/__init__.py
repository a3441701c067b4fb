"""Graphs of torch.export."""
