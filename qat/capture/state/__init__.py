"""Attributes that forward stores on its modules."""
