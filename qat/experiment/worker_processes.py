"""Processes of a run beyond its first: they train and measure with it, and neither write nor say anything."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID")
"""Where torchrun, Lightning's own launcher and SLURM say which process this is; the first that is set decides."""


@contextmanager
def worker_process() -> Iterator[None]:
    """Inside the `with`, a program with Hydra that is not the first of its run has a folder of its own, thrown away at the end.

    What Hydra makes before anybody knows of the others (the folder of a run is named after the second it began in) lands
    there, and so does no log: only errors are printed. Nothing changes for the first process.
    """
    if _rank() == 0:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="qat-") as folder:
        silent = ["~hydra.job_logging.handlers.file", "hydra.job_logging.root.handlers=[printed]"]
        given = [argument for argument in sys.argv if not argument.startswith("hydra.run.dir=")]
        sys.argv = [*given, f"hydra.run.dir={folder}", *silent, "hydra.job_logging.root.level=ERROR"]
        yield


def _rank() -> int:
    return next((int(os.environ[name]) for name in RANKS if os.environ.get(name, "").isdigit()), 0)
