"""`qat train [overrides]`: run a recipe. Hydra reads the arguments, `--help` among them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def run(arguments: list[str]) -> int:
    """Run the program of qat/experiment/main.py with these arguments. Returns the exit status."""
    import __main__
    from qat.experiment.main import main

    argv, spec, path = sys.argv, __main__.__spec__, list(sys.path)
    sys.argv = [argv[0], *arguments]
    # Lightning starts the processes of further devices with `python -m` and this name; `qat` alone would miss its `train`.
    __main__.__spec__ = importlib.util.find_spec("qat.experiment.main")
    sys.path.append(str(Path.cwd()))  # a _target_ may name a module in the current folder
    try:
        main()
    finally:
        sys.argv, __main__.__spec__, sys.path[:] = argv, spec, path
    return 0
