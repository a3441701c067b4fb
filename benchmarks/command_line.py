"""The command line of the programs: the options they share, and the form in which a results file records it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch


def argument_parser(description: str | None, *, with_device: bool = False) -> argparse.ArgumentParser:
    """Make a parser with `--threads` and, if asked for, `--device`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    if with_device:
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return parser


def parse_options(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, set the number of threads and check that the device is there."""
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    check_device(getattr(options, "device", "cpu"))
    return options


def check_device(device: str) -> None:
    """End the program if there is no such device.

    Raises:
        SystemExit: `device` is "cuda" and torch finds no GPU.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; write --device cpu.")


def command() -> str:
    """The command line as typed from the root of the repository."""
    return shlex.join(["python", "-m", f"benchmarks.{_program()}", *sys.argv[1:]])


def _program() -> str:
    path = Path(sys.argv[0])
    return path.parent.name if path.stem == "__main__" else path.stem
