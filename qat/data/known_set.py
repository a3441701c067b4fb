"""Well-known data sets, recognised on disk by their layout: torchvision's own files, or a copy as folders of images."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from qat.data.decode import ImageFiles, decode
from qat.data.tensor_images import TensorImages


def data_root(root: str | Path | None) -> Path:
    """Where data sets live: `root`, else the environment's QAT_DATA_DIR, else ./data."""
    return Path(root or os.environ.get("QAT_DATA_DIR") or "data").expanduser()


@dataclass(frozen=True)
class KnownSet:
    """A data set that torchvision can read and download.

    Args:
        name: "cifar10"; also the folder a copy may lie in, under the root (with `_jpeg` or `_png` behind it, too).
        title: "CIFAR-10", for messages.
        marker: a file that torchvision's layout has below its root.
        classes: the class folders of a copy, sorted; their order is that of the labels.
        channels: 1 or 3.
        read: (root, train) -> images, by torchvision's own class with `download=True`.
    """

    name: str
    title: str
    marker: str
    classes: tuple[str, ...]
    channels: int
    read: Callable[[Path, bool], TensorImages]

    def load(self, root: str | Path | None) -> tuple[str, TensorImages, TensorImages]:
        """The label for tables, the training images and the test images.

        A root without the data set is downloaded into, if it or its parent folder exists; never anywhere else.

        Raises:
            FileNotFoundError: there is neither data nor a way to download it.
            ValueError: a copy has other classes than the data set, or an image cannot be decoded.
        """
        root = data_root(root)
        for base in (root, root / self.name):
            if (base / self.marker).is_file():
                return self.name, *self._torchvision(base)
        for base in (root, *(root / f"{self.name}{suffix}" for suffix in ("", "_jpeg", "_png"))):
            if (base / "train").is_dir() and (base / "test").is_dir():
                return self._copy(base)
        if not root.is_dir() and not root.absolute().parent.is_dir():
            raise FileNotFoundError(f"{self.title} is not in {root}, and neither is that folder: {self._remedy()}")
        return self.name, *self._torchvision(root)

    def _torchvision(self, root: Path) -> tuple[TensorImages, TensorImages]:
        try:
            return self.read(root, True), self.read(root, False)
        except (OSError, RuntimeError, ValueError, AssertionError) as error:  # no network, no space, damaged files
            reason = textwrap.shorten(str(error), 200)
            raise FileNotFoundError(
                f"{self.title} is not complete in {root} and cannot be downloaded there ({reason}): {self._remedy()}"
            ) from error

    def _copy(self, root: Path) -> tuple[str, TensorImages, TensorImages]:
        train, test = ImageFiles.listed(root / "train"), ImageFiles.listed(root / "test")
        for files in (train, test):
            if files.classes != self.classes:
                raise ValueError(
                    f"{files.folder} has the class folders {textwrap.shorten(', '.join(files.classes), 120)}, "
                    f"{self.title} has {', '.join(self.classes)}: use data=image_folder for images of your own."
                )
        kind = Path(train.paths[0]).suffix.lower().lstrip(".").replace("jpg", "jpeg")
        return f"{self.name} ({kind} copy)", decode(train, self.channels, None), decode(test, self.channels, None)

    def _remedy(self) -> str:
        return (
            f"put torchvision's {self.marker} or a copy as train/<class>/*.jpg and test/<class>/*.jpg there, "
            "or set data.root= (or QAT_DATA_DIR) to the folder that has one."
        )
