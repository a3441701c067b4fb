"""Modules that a graph calls for what they store, not for what they return."""

from __future__ import annotations

from torch import nn


class SideEffect(nn.Module):
    """Base class of modules that return nothing and are left out of integer models and files."""
