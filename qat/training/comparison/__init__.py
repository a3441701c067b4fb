"""The comparison of a fit: its networks, how they are measured, and the rows and records of the report."""
