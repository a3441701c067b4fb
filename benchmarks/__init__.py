"""Benchmark programs: `python -m benchmarks.<name>` from the root of the repository."""

import os

os.environ.setdefault(
    "KINETO_LOG_LEVEL", "99"
)  # else torch's profiler reports every start and stop; torch reads it once
