"""Where everything is kept that can be made again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The environment's QAT_CACHE_DIR, else ~/.cache/qat. Safe to delete at any time."""
    return Path(os.environ.get("QAT_CACHE_DIR") or "~/.cache/qat").expanduser()
