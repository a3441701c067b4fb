"""`qat train [overrides]`: run a recipe. Hydra reads the arguments, `--help` among them."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

from qat.cli.arguments import make_parser, print_json


def parser() -> argparse.ArgumentParser:
    """What the shell completes: Hydra reads the arguments."""
    made = make_parser("train", "")
    made.add_argument("-m", "--multirun", action="store_true")
    made.add_argument("--json", action="store_true")
    made.add_argument("--cfg", choices=("job", "hydra", "all"))
    made.add_argument("--config-dir")
    made.add_argument("overrides", nargs="*").completer = _overrides  # type: ignore[attr-defined]
    return made


def _overrides(**_: object) -> list[str]:
    from qat.experiment.help import options_of_groups

    return [f"{group}={option}" for group, options in options_of_groups().items() for option in options]


def run(arguments: list[str]) -> int:
    """Run the program of qat/experiment/main.py with these arguments. Returns the exit status.

    `--json` is ours: Hydra does not see it.
    """
    import __main__
    from qat.experiment.answers import answering
    from qat.experiment.main import main

    argv, spec, path = sys.argv, __main__.__spec__, list(sys.path)
    sys.argv = [argv[0], *(word for word in arguments if word != "--json")]
    # Lightning starts the processes of further devices with `python -m` and this name; `qat` alone would miss its `train`.
    __main__.__spec__ = importlib.util.find_spec("qat.experiment.main")
    sys.path.append(str(Path.cwd()))  # a _target_ may name a module in the current folder
    try:
        with answering(print_json if "--json" in arguments else None):
            main()
    finally:
        sys.argv, __main__.__spec__, sys.path[:] = argv, spec, path
    return 0
