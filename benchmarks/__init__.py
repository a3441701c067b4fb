"""Programs that measure, each with one command: `python -m benchmarks.<name>` from the root of the repository."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # torch's profiler reports every start and stop otherwise; read once
