"""Results files of the programs: the measurement, the command and the machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.command_line import command
from qat.files import write_atomically
from qat.report import Environment

RESULTS = Path(__file__).parent / "results"


def write_measurement(path: Path, measurement: dict[str, Any], device: str = "cpu") -> None:
    """Write `{"command": ..., "environment": ..., **measurement}` as JSON; a reader never sees a partial file."""
    accelerator = torch.cuda.get_device_name() if device == "cuda" else None
    content = {
        "command": command(),
        "environment": Environment.collect(threads=torch.get_num_threads(), accelerator=accelerator).to_dict(),
        **measurement,
    }
    write_atomically(path, json.dumps(content, indent=2) + "\n")
