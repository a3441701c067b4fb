"""Completion in the shell, by argcomplete: commands, options, and what options take."""

from __future__ import annotations

import importlib

from qat.cli.commands import COMMANDS, command_parser


def complete() -> None:
    """Answer the shell and exit. Called when argcomplete's script asks (the variable _ARGCOMPLETE is set)."""
    try:
        import argcomplete
    except ModuleNotFoundError:
        return
    parser = command_parser(with_command=False)
    subparsers = parser.add_subparsers()
    for name in COMMANDS:
        make = getattr(importlib.import_module(f"qat.cli.{name}"), "parser", None)
        subparsers.add_parser(name, add_help=False, parents=[] if make is None else [make()])
    argcomplete.autocomplete(parser)
