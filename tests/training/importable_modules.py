"""LightningModules that another process imports to load their checkpoints."""

from __future__ import annotations

from torch import nn

from tests.training.user_modules import Classifier


class WithHyperparameters(Classifier):
    """Saves its hyperparameters in checkpoints."""

    def __init__(self, lr: float = 0.01, hidden: int = 6) -> None:
        super().__init__(lr)
        self.save_hyperparameters()
        self.net.conv2, self.net.bn2 = nn.Conv2d(4, hidden, 3, padding=1), nn.BatchNorm2d(hidden)
        self.net.head = nn.Linear(4 * hidden, self.net.head.out_features)


class WithoutHyperparameters(Classifier):
    """Does not save its hyperparameters."""

    def __init__(self, lr: float) -> None:
        super().__init__(lr)
