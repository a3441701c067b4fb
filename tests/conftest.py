"""Every test starts from the same random numbers, on one thread: small tensors wait longer for threads than they compute."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
settings.register_profile(
    "busy", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)  # time of others is not a fault
settings.load_profile("busy")
if not torch.cuda.is_available():
    os.environ.setdefault(
        "TRITON_INTERPRET", "1"
    )  # read when Triton is imported: its kernels run in Python, on the CPU

QUICK = ("estimators", "integer", "models", "nn", "report")
"""Folders of `tests/` whose tests are marked `quick`, besides the files that lie directly in `tests/`."""
HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _same_random_numbers() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _same_logging() -> Iterator[None]:
    """Undo what a test configured: Hydra logs to the standard output of its own test, which is closed in the next one."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for added in set(root.handlers) - set(handlers):
        added.close()
    root.handlers[:] = handlers
    root.setLevel(level)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests as quick by their folder."""
    for item in items:
        folder = item.path.parent
        quick = folder == HERE or (folder.parent == HERE and folder.name in QUICK)
        if quick and item.get_closest_marker("slow") is None:
            item.add_marker("quick")
