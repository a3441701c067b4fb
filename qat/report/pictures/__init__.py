"""Pictures: matplotlib for files, SVG for the HTML page."""
