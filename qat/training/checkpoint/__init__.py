"""Fits that continue from a checkpoint as if they had never stopped: `docs/resume.md`."""
