"""LightningModules around networks that torch.fx does not capture as they are."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Attending(nn.Module):
    """Rows of an image as tokens; torch.fx sees no layer in nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(8, 16)
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.embed(x.squeeze(1)))
        return self.head((h + self.attention(h, h, h, need_weights=False)[0]).mean(dim=1))


class Named(nn.Module):
    """Called with names, as those of Hugging Face are; branches on its arguments, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.places = nn.Embedding(20, 16), nn.Embedding(8, 16)
        self.query, self.key, self.value = (nn.Linear(16, 16) for _ in range(3))
        self.dropout, self.head = nn.Dropout(0.1), nn.Linear(16, 4)

    def forward(
        self, ids: Tensor | None = None, mask: Tensor | None = None, embedded: Tensor | None = None
    ) -> dict[str, Tensor]:
        if ids is not None:
            embedded = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        assert embedded is not None
        if mask is not None and mask.dim() == 2:
            mask = mask[:, None, None, :].bool()
        q, k, v = (
            layer(embedded).unflatten(-1, (2, 8)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return {"logits": self.head(self.dropout(embedded + h)[:, 0])}


class AttendingModule(L.LightningModule):
    """The usual LightningModule around `Attending`, with a dataloader of its own, whose data `setup` makes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Attending()

    def setup(self, stage: str) -> None:
        self.data: Dataset[Any] = Sentences(images=True)

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, on_epoch=True)
        return loss

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test/loss", self.loss(batch))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, 8, shuffle=True)

    def test_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, 8)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-4)


class NamedModule(AttendingModule):
    """Around `Named`, with batches that are dicts."""

    def __init__(self, network: nn.Module | None = None) -> None:
        super().__init__()
        self.net = network or Named()

    def setup(self, stage: str) -> None:
        self.data = Sentences(images=False)

    def loss(self, batch: Any) -> Tensor:
        return F.cross_entropy(self.net(ids=batch["ids"], mask=batch["mask"])["logits"], batch["label"])


class Sentences(Dataset[Any]):
    """32 sequences of 8: rows of images with labels, or numbers of words with masks and labels."""

    def __init__(self, images: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.images = images
        self.pixels = torch.randn(32, 1, 8, 8, generator=generator)
        self.ids = torch.randint(20, (32, 8), generator=generator)
        self.mask = (torch.arange(8) < torch.randint(3, 9, (32, 1), generator=generator)).long()
        self.labels = torch.randint(4, (32,), generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> Any:
        if self.images:
            return self.pixels[i], self.labels[i]
        return {"ids": self.ids[i], "mask": self.mask[i], "label": self.labels[i]}
