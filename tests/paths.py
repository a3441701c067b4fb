"""Folders that tests read: the repository, and the real data beside it, where there are any."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
DOCS = ROOT / "docs"
SHARED = Path(os.environ.get("QAT_SHARED", ROOT / "../shared")).resolve()
"""Real data and checkpoints. Tests that want them skip where this folder is absent."""
