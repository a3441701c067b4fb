"""Modules that a graph calls for what they store, not for what they return."""

from __future__ import annotations

from torch import nn


class SideEffect(nn.Module):
    """Returns nothing, and is not part of the artefact."""
