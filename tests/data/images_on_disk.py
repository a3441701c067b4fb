"""Folders of random images, and a cache that is separate from that of the user who runs the tests."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


def write_images(
    folder: Path,
    classes: tuple[str, ...] = ("cat", "dog"),
    n: int = 3,
    size: tuple[int, int] = (8, 8),
    mode: str = "RGB",
    suffix: str = "png",
) -> Path:
    """`folder`/<class>/0.png, 1.png, ... of `size` (width, height), all different."""
    random = np.random.default_rng(len(folder.name))
    width, height = size
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.{suffix}")
    return folder


def cache_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make `folder` the cache folder, and ignore QAT_DATA_DIR."""
    monkeypatch.setenv("QAT_CACHE_DIR", str(folder))
    monkeypatch.delenv("QAT_DATA_DIR", raising=False)
    return folder
