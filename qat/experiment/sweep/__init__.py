"""Sweeps: many runs from one command, and one table at the end. grid_sweeper.py is where to read."""
