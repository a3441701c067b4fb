"""The subcommands of `qat`, and the parser of the first word."""

from __future__ import annotations

import argparse

from qat.cli.arguments import Parser
from qat.version import version

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
