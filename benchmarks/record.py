"""Writing what was found, with the command and the machine."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch

from qat.files import write_atomically
from qat.report import Environment

RESULTS = Path(__file__).parent / "results"


def write(path: Path, found: dict[str, Any], device: str = "cpu") -> None:
    """`{"command": ..., "environment": ..., **found}` as JSON; the file is whole at any time."""
    accelerator = torch.cuda.get_device_name() if device == "cuda" else None
    record = {
        "command": command(),
        "environment": Environment.collect(threads=torch.get_num_threads(), accelerator=accelerator).to_dict(),
        **found,
    }
    write_atomically(path, json.dumps(record, indent=2) + "\n")


def command() -> str:
    """The command line, as somebody else would type it from the root of the repository."""
    return shlex.join(["python", "-m", f"benchmarks.{_program()}", *sys.argv[1:]])


def _program() -> str:
    path = Path(sys.argv[0])
    return path.parent.name if path.stem == "__main__" else path.stem


def check_device(device: str) -> str:
    """For `--device`: what was asked for, if it is there."""
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no GPU here; write --device cpu.")
    return device
