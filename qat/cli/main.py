"""`qat`: one command, with a module of this folder for each subcommand."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from qat.version import version

COMMANDS = {
    "train": "run a recipe: float network, PTQ, QAT, ONNX file, verification, report",
    "verify": "say whether an ONNX file may be deployed; its exit status is for CI",
}
"""Subcommand -> what `qat --help` says about it. The module `qat.cli.NAME` has `run(arguments) -> exit status`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; what follows its name is for its module. Returns the exit status.

    Args:
        arguments: those of the command line; None takes them from `sys.argv`.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        _parser().print_help()
        return 0
    command = _parser().parse_args(given[:1]).command
    # Imported here: --help does not wait for torch.
    try:
        status: int = importlib.import_module(f"qat.cli.{command}").run(given[1:])
    except KeyboardInterrupt:
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "qat",
        usage="qat COMMAND ...",
        description="Quantization-aware training: what you trained is what you deploy, bit for bit.",
        epilog=f"commands (qat COMMAND --help says more):\n{commands}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qat {version()}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser
