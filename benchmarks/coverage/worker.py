"""Measure one network in a process of its own, with limits."""

from __future__ import annotations

import json
import resource
import signal
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.coverage.measure import Record, measure
from benchmarks.coverage.networks import choose
from qat.files import write_atomically

PATIENCE = 8
"""Limit of the clock over that of the processor: for a machine that does other work."""
FORK_SERVER_GONE = 255
"""What multiprocessing returns for the exit code of a process whose parent, the fork server, is gone."""
IMPORTED_ONCE = ["benchmarks.coverage.worker", "benchmarks.coverage.preloaded", "onnxruntime", "timm", "transformers"]


def measure_in_process(name: str, seconds: float, memory: float, threads: int) -> Record:
    """The record of a network. If its process is stopped or dies: what it had found until then, and the stage it was in.

    Args:
        name: a name of `networks.cases`.
        seconds: processor time that it may take.
        memory: GiB that it may allocate.
        threads: that it computes with.
    """
    context = get_context("forkserver")  # imports everything once, and has computed nothing when it forks
    context.set_forkserver_preload(IMPORTED_ONCE)
    with TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        process = context.Process(target=_measure, args=(name, out, seconds, memory, threads))
        process.start()
        process.join(PATIENCE * seconds)
        if process.is_alive():
            process.kill()
            process.join()
        if process.exitcode == FORK_SERVER_GONE:
            raise RuntimeError(f"the process that starts the others was ended while {name} was measured.")
        record: Record = json.loads(out.read_text()) if out.is_file() else {"running": "start"}
    if (stage := record.pop("running", None)) is not None:
        record.setdefault("failures", {})[stage] = _reason(process.exitcode or 0, seconds)
    return record


def _reason(exit_code: int, seconds: float) -> str:
    if exit_code in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"stopped after {seconds:.0f} seconds"
    return f"the process died of {signal.Signals(-exit_code).name}" if exit_code < 0 else f"exit code {exit_code}"


def _measure(name: str, out: Path, seconds: float, memory: float, threads: int) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 1,) * 2)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory * 2**30),) * 2)
    torch.set_num_threads(threads)

    def save(record: Record) -> None:
        write_atomically(out, json.dumps(record))

    save(measure(choose([name])[name], save))
