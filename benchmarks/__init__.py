"""Programs that measure, each with one command: `python -m benchmarks.<name>` from the root of the repository."""
