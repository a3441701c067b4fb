"""`qat`: one command, with a module of this folder for each subcommand."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from qat.cli.arguments import answer_error, asks_for_json, json_alone
from qat.cli.commands import command_parser
from qat.cli.errors import one_line_warnings, sentence, status_of

INTERRUPTED = 130
"""The exit status that a shell gives a program that Ctrl+C ended."""


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
    try:
        run = importlib.import_module(f"qat.cli.{command}").run  # here: --help does not wait for torch
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
