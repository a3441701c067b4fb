"""YOLO, built from the configuration inside its package, where somebody has installed it: its licence is the AGPL."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from torch import Tensor, nn

from benchmarks.coverage.case import Case, images

CONFIGURATIONS = ("yolov8n.yaml", "yolo11n.yaml")


class TrainingOutputs(nn.Module):
    """The maps in front of the decoding of boxes, which is what the loss reads."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.network.model[-1].forward = self._maps  # type: ignore[index, union-attr]

    def _maps(self, x: list[Tensor]) -> list[Tensor]:
        head: Any = self.network.model[-1]  # type: ignore[index]
        return [t for i, m in enumerate(x) for t in (head.cv2[i](m), head.cv3[i](m))]

    def forward(self, x: Tensor) -> Any:
        return self.network(x)


def _build(configuration: str) -> nn.Module:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    return TrainingOutputs(tasks.DetectionModel(configuration, verbose=False))


def cases() -> list[Case]:
    """YOLO from its YAML, without weights."""
    return [Case(f"yolo/{name}", partial(_build, name), images(64), needs="ultralytics") for name in CONFIGURATIONS]
