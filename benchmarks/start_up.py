"""How long a user waits: importing, `qat --help`, and `train.py` from its start to its first training step.

Each is a process of its own, in turns. The first training step is that of the float network, which the default recipe trains
before it quantizes: everything that happens before any training lies in front of it.

python -m benchmarks.start_up --threads 1
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.markdown_table import markdown_table
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.program_tables import NOT_MEASURED, Measurement, with_source

ROOT = Path(__file__).parents[1]
UNTIL_FIRST_STEP = """
import os, sys
import lightning as L

class EndAfterFirstStep(L.Callback):
    def on_train_batch_end(self, *_):
        os._exit(0)

initialize = L.Trainer.__init__

def with_callback(self, *args, callbacks=(), **kwargs):
    initialize(self, *args, callbacks=[*callbacks, EndAfterFirstStep()], **kwargs)

L.Trainer.__init__ = with_callback
sys.argv[0] = "train.py"
from qat.experiment.main import main
main("python train.py")
raise SystemExit("the run ended before its first training step")
"""


def programs(folder: Path) -> dict[str, list[str]]:
    """What is measured -> arguments of Python."""
    return {
        "import torch": ["-c", "import torch"],
        "import torch, lightning, torchmetrics, torchvision": [
            "-c",
            "import torch, lightning, torchmetrics, torchvision",
        ],
        "import qat": ["-c", "import qat"],
        "qat --help": ["-m", "qat", "--help"],
        "train.py to its first step": ["-c", UNTIL_FIRST_STEP, f"hydra.run.dir={folder}/run"],
    }


def seconds(arguments: list[str], threads: int, folder: Path) -> float:
    """Wall time of a process that caches no float network outside of `folder`.

    Raises:
        RuntimeError: it failed.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "QAT_CACHE_DIR": str(folder)}
    start = time.perf_counter()
    ended = subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    taken = time.perf_counter() - start
    if ended.returncode:
        raise RuntimeError(f"{arguments[-1]} ended with status {ended.returncode}: {ended.stderr[-500:]}")
    return taken


def table(measurement: Measurement | None) -> str:
    """The median of each program."""
    if measurement is None:
        return NOT_MEASURED
    rows = [
        [name, f"{statistics.median(times):.1f}", f"{min(times):.1f} to {max(times):.1f}"]
        for name, times in measurement["seconds"].items()
    ]
    return with_source(markdown_table(("", "median, s", "least to most"), rows, text_columns=1), measurement)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "start_up/cpu.json")
    options = parse_options(parser)
    taken: dict[str, list[float]] = {}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            for name, arguments in programs(Path(folder)).items():
                taken.setdefault(name, []).append(seconds(arguments, torch.get_num_threads(), Path(folder)))
        print({name: round(times[-1], 2) for name, times in taken.items()}, flush=True)
    write_measurement(options.out, {"seconds": taken})


if __name__ == "__main__":
    main()
