"""What follows from the results: differences in pairs, verdicts, where a file is slow, what a sweep looks for."""
