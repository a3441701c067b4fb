"""Training on Lightning: callbacks, optimization, checkpoints, comparison. Knows Lightning, and nothing of Hydra."""
