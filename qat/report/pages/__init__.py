"""The reports that people hand on: Markdown and HTML."""
