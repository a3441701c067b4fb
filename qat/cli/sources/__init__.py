"""What the command line calls a model and data, and what becomes of it."""
