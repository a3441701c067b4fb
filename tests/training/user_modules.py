"""LightningModules as other people write them, on random 8x8 images whose class is easy to see."""

from __future__ import annotations

from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

CLASSES = 4

LIGHTNING = [  # warnings of Lightning about small runs, and with recent versions of torch
    pytest.mark.filterwarnings(r"ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings(r"ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings(r"ignore:.*smaller than the logging interval.*"),
    pytest.mark.filterwarnings(r"ignore:Checkpoint directory .* exists"),
    pytest.mark.filterwarnings(r"ignore:.*You defined a `validation_step` but have no `val_dataloader`.*"),
]


def images(n: int, seed: int = 0) -> TensorDataset:
    """n images (1, 8, 8): one bright quarter says the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (n,), generator=generator)
    pixels = torch.randn(n, 1, 8, 8, generator=generator)
    for image, label in zip(pixels, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 2
    return TensorDataset(pixels, labels)


class Data(L.LightningDataModule):
    def __init__(self, val_factor: float = 1.0) -> None:
        super().__init__()
        self.train, self.val, self.test = images(128, 0), images(32, 1), images(48, 2)
        self.val = TensorDataset(self.val.tensors[0] * val_factor, self.val.tensors[1])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train, 32, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val, 16)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.test, 16)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Linear(24, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.head(F.avg_pool2d(x, 4).flatten(1))


class Classifier(L.LightningModule):
    """The usual LightningModule: a network in an attribute and a forward that calls it."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__()
        self.net = Net()
        self.accuracy = MulticlassAccuracy(CLASSES, average="micro")
        self.lr = lr

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_epoch=True, on_step=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.accuracy(self(batch[0]), batch[1])
        self.log("val/top1", self.accuracy)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.accuracy(self(batch[0]), batch[1])
        self.log("test/top1", self.accuracy)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9, weight_decay=1e-3)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class ModuleAsNetwork(Classifier):
    """The LightningModule is the network."""

    def __init__(self, lr: float = 0.01) -> None:
        super().__init__(lr)
        del self.net
        net = Net()
        self.conv, self.bn, self.head = net.conv1, net.bn1, nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        return self.head(F.avg_pool2d(x, 4).flatten(1))


class Manual(Classifier):
    """Manual optimization, with one optimizer for the body and one for the head."""

    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():  # type: ignore[union-attr]
            optimizer.step()
        return loss

    def configure_optimizers(self) -> Any:
        body = [p for n, p in self.named_parameters() if not n.startswith("net.head.")]
        head = [p for n, p in self.named_parameters() if n.startswith("net.head.")]
        return torch.optim.SGD(body, lr=0.02), torch.optim.AdamW(head, lr=0.01)


def trainer(path: Any, *callbacks: L.Callback, epochs: int = 1, **options: Any) -> L.Trainer:
    return L.Trainer(
        **{
            "max_epochs": epochs,
            "accelerator": "cpu",
            "logger": False,
            "default_root_dir": path,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "callbacks": list(callbacks),
            **options,
        }
    )
