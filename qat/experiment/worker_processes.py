"""The processes of a run beyond its first: they train and evaluate with it, but write and print nothing."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

RANK_VARIABLES = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Variables in which torchrun, Lightning's launcher and SLURM give the rank of this process; the first that is set counts."""


@contextmanager
def worker_process() -> Iterator[None]:
    """Inside the `with` block, Hydra in a process of rank 1 or more writes into a temporary folder and prints errors only.

    Hydra names the run's folder after the second in which the process starts, so each process would create its own. Nothing
    changes for rank 0.
    """
    if not is_worker():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="qat-") as folder:
        silent = ["~hydra.job_logging.handlers.file", "hydra.job_logging.root.handlers=[printed]"]
        given = [argument for argument in sys.argv if not argument.startswith("hydra.run.dir=")]
        sys.argv = [*given, f"hydra.run.dir={folder}", *silent, "hydra.job_logging.root.level=ERROR"]
        yield


def is_worker() -> bool:
    """Whether this process has rank 1 or more."""
    ranks = (os.environ.get(name, "") for name in RANK_VARIABLES)
    return next((int(rank) for rank in ranks if rank.isdigit()), 0) > 0
