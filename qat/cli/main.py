"""`qat`: one command, with a module of this folder for each subcommand."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from qat.cli.arguments import Parser, answer_error, asks_for_json, json_alone
from qat.cli.errors import one_line_warnings, sentence, status_of
from qat.version import version

INTERRUPTED = 130
"""The exit status that a shell gives a program that Ctrl+C ended."""
COMMANDS = {
    "quantize": "from a model to a verified file: post-training, quantization-aware, dynamic, or weights alone",
    "benchmark": "accuracy, latency, size and agreement of models and files, measured in turns",
    "inspect": "what a policy would do to a model, what it costs layer by layer, and what mends it",
    "latency": "measure the times of layers in each format, for a budget of milliseconds",
    "verify": "say whether an ONNX file may be deployed; its exit status is for CI",
    "compare": "the results of several runs beside each other",
    "train": "run a recipe: float network, PTQ, QAT, ONNX file, verification, report",
}
"""Subcommand -> what `qat --help` says about it. The module `qat.cli.NAME` has `run(arguments) -> exit status`."""
EPILOG = """\
commands (qat COMMAND --help says more):
{commands}

exit status: 0 good, 1 it failed or differs, 2 the command line is not possible.
completion:  eval "$(register-python-argcomplete qat)"   (bash, zsh)
QAT_DEBUG=1 shows tracebacks."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; what follows its name is for its module. Returns the exit status.

    Args:
        arguments: those of the command line; None takes them from `sys.argv`.
    """
    if "_ARGCOMPLETE" in os.environ:
        from qat.cli.completion import complete

        complete()
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given:
        command_parser().print_help()
        return 0
    with json_alone() if asks_for_json(given) else nullcontext():
        return _run(command_parser().parse_args(given[:1]).command, given[1:])


def _run(command: str, given: list[str]) -> int:
    """Run a subcommand. Returns the exit status."""
    # Imported here: --help does not wait for torch.
    run = importlib.import_module(f"qat.cli.{command}").run
    try:
        with nullcontext() if command == "train" else one_line_warnings():  # Hydra explains its own errors
            status: int = run(given)
    except KeyboardInterrupt:
        answer_error("interrupted", INTERRUPTED)
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        status = status_of(error, command)
        answer_error(sentence(error), status)
    return status


def command_parser(with_command: bool = True) -> argparse.ArgumentParser:
    """The parser of the first word; without the word itself, one to which subparsers can be added."""
    commands = "\n".join(f"  {name:<10} {summary}" for name, summary in COMMANDS.items())
    parser = Parser(
        "qat",
        usage="qat COMMAND ...",
        description="Quantization-aware training: what you trained is what you deploy, bit for bit.",
        epilog=EPILOG.format(commands=commands),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"qat {version()}")
    if with_command:
        parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=argparse.SUPPRESS)
    return parser
