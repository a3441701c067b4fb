"""Arguments that several commands have, and what they are checked for."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from qat.cli.errors import USAGE
from qat.cli.sources.spellings import DATA_HELP, MODEL_HELP, NETWORK_HELP

MOST_THREADS = 1024
"""More than any processor has; many more end a process."""
_ANSWERS: ContextVar[Any] = ContextVar("answers", default=None)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one sentence, and follow `--json`, too.

    It refuses empty words, which a shell makes of variables that are not set, and names an unknown option first.
    """

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        known = [*self._option_string_actions]
        for name in (word.partition("=")[0] for word in args or () if word.startswith("--")):
            if not any(option.startswith(name) for option in known):
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
                hint = f"did you mean {near[0]}?" if near else f"{self.prog} --help lists those that there are"
                self.error(f"unknown option {name}; {hint}")
        return super().parse_args(args, namespace)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        before = "an argument"
        for word in args or ():
            if not word.strip() or (word.startswith("--") and word.endswith("=")):
                self.error(f"{word.rstrip('=').strip() or before} is empty: write a value, or leave it out")
            before = word if word.startswith("-") else "an argument"
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        if message.startswith(("argument ", "the following", "unrecognized", "ambiguous", "one of")):  # argparse's own
            message = f"{message} ({self.prog} --help says more)"
        answer_error(message, USAGE)
        self.exit(USAGE, f"{self.prog}: error: {message}\n")


def make_parser(command: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose help keeps line breaks."""
    return Parser(
        f"qat {command}", description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """How a network gets its weights."""
    parser.add_argument(
        "--weights",
        metavar="W",
        help="DEFAULT: the library's pretrained ones; or one of their names, or a file (random)",
    )
    parser.add_argument("--architecture", metavar="M", help="the network that a file of weights belongs to")


def add_data_arguments(parser: argparse.ArgumentParser, samples: int | None = 128, tests: int | None = 512) -> None:
    """The data, and how many samples. samples, tests: the defaults; None: the command has no such option."""
    group = parser.add_argument_group("data")
    group.add_argument("--data", metavar="D", help=DATA_HELP)
    if samples is not None:
        group.add_argument("--samples", type=positive, metavar="N", help=f"samples that calibrate or train ({samples})")
    if tests is not None:
        group.add_argument("--test-samples", type=positive, metavar="N", help=f"samples that test and verify ({tests})")
    group.add_argument("--batch-size", type=positive, default=32, metavar="N", help="samples in a batch (%(default)s)")
    group.add_argument("--image-size", type=positive, metavar="N", help="pixels per side to which images are scaled")
    group.add_argument(
        "--input-shape", type=shape, metavar="C,H,W", help="of one sample, for noise to a model that does not say it"
    )


def add_output_arguments(parser: argparse.ArgumentParser, usual: str = "all cores") -> None:
    """`--json` and `--threads`. usual: how many threads there are by default, in words."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--threads", type=threads, metavar="N", help=f"processor threads (default: {usual})")


def add_seconds_argument(parser: argparse.ArgumentParser, default: float) -> None:
    """`--seconds`, for the measurement of latencies."""
    text = "for the latency of a batch size (%(default)s)"
    parser.add_argument("--seconds", type=positive_float, default=default, metavar="S", help=text)


MODEL_ARGUMENT: dict[str, Any] = {"metavar": "M", "help": MODEL_HELP}
NETWORK_ARGUMENT: dict[str, Any] = {"metavar": "M", "help": NETWORK_HELP}
"""For commands that take no ONNX file."""


def policies(**_: Any) -> list[str]:
    """What the shell completes for a policy: the options of `qat train`, and those of transformers."""
    from qat.experiment.help import options_of_groups

    known = options_of_groups()["policy"]
    return sorted(known | {f"transformer_{name.removeprefix('transformer_')}" for name in known})


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if not text.isdecimal() or len(text) > 9 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 to 999,999,999")
    return int(text)


def threads(text: str) -> int:
    """A number of threads, for argparse."""
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= MOST_THREADS:
        raise argparse.ArgumentTypeError(f"{text} is not a number of threads from 1 to {MOST_THREADS}")
    return int(text)


def positive_float(text: str) -> float:
    """A finite number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a number above 0")
    return value


def shape(text: str) -> tuple[int, ...]:
    """C,H,W, for argparse.

    >>> shape("3,32,32")
    (3, 32, 32)
    """
    parts = [part.strip() for part in text.replace("x", ",").split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise argparse.ArgumentTypeError(f"{text} is not a shape of a sample: write it as 3,224,224")
    return tuple(map(int, parts))


def seed(text: str) -> int:
    """A whole number that seeds generators, for argparse."""
    if not text.isdecimal() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 0 to {2**32 - 1:,}")
    return int(text)


def png(text: str) -> Path:
    """The name of a picture, for argparse."""
    if Path(text).suffix != ".png":
        raise argparse.ArgumentTypeError(f"{text} is not the name of a picture: write one that ends in .png")
    return new_file(text)


def new_file(text: str) -> Path:
    """The name of a file in a folder that exists, for argparse: found before the work, not behind it."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder: write a file in it, {path / 'NAME'}")
    if not can_write_in(path.parent):
        raise argparse.ArgumentTypeError(
            f"{text} cannot be written, because {path.parent} is not a folder that takes files"
        )
    return path


def can_write_in(folder: Path) -> bool:
    """Whether a folder takes files: permissions do not tell, on a disk that is full or read-only."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"qat")
    except OSError:
        return False
    return True


def use_threads(threads: int | None) -> None:
    """Set the threads of torch."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def say(text: str) -> None:
    """A line of progress on standard error, so that standard output has the result alone."""
    print(text, file=sys.stderr, flush=True)


def asks_for_json(given: Sequence[str]) -> bool:
    """Whether `--json` is among the arguments, abbreviated as argparse allows it, and the answer is not help text."""
    texts = {"-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version"}
    return not texts.intersection(given) and any(len(word) > 2 and "--json".startswith(word) for word in given)


@contextmanager
def json_alone() -> Iterator[None]:
    """Inside the `with` block, `print_json` alone writes to standard output; all other prints go to standard error.

    A model's own file, a library or another process may print whatever it likes.
    """
    terminal = sys.__stdout__
    if terminal is None or sys.stdout is not terminal:  # a caller in this process reads it
        with _answering_on(sys.stdout):
            yield
        return
    terminal.flush()
    saved = os.dup(1)
    os.dup2(2, 1)  # also for other processes, and for what is not written in Python
    try:
        with open(saved, "w", encoding=terminal.encoding, closefd=False) as stream, _answering_on(stream):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def _answering_on(stream: Any) -> Iterator[None]:
    token = _ANSWERS.set(stream)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _ANSWERS.reset(token)


def print_json(content: Any) -> None:
    """One JSON object on standard output; what is not a number is null."""
    from qat.report.results.json_records import to_plain

    text = json.dumps(to_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    print(text, file=_ANSWERS.get() or sys.stdout, flush=True)


def answer_error(text: str, status: int) -> None:
    """What is wrong as a JSON object, if one was asked for. status: the exit status that follows."""
    if _ANSWERS.get() is not None:
        print_json({"error": text, "status": status})


def text_table(header: tuple[str, ...], rows: list[tuple[str, ...]], text_columns: int = 1) -> str:
    """Columns of text, the first to the left, the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < text_columns else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
