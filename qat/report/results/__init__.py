"""The results of a run as dataclasses, and the file that holds them."""
