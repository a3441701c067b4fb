"""A vision transformer (Dosovitskiy et al. 2021, "An image is worth 16x16 words") in plain layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and a two-layer network, each after a LayerNorm and with a shortcut: (N, T, width) -> (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.width, self.heads = width, heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attention(self.norm1(x))
        return x + self.down(F.gelu(self.up(self.norm2(x))))

    def _attention(self, x: Tensor) -> Tensor:
        split = self.qkv(x).unflatten(2, (3, self.heads, self.width // self.heads))  # (N, T, 3, heads, width / heads)
        q, k, v = split.permute(2, 0, 3, 1, 4).unbind(0)  # each (N, heads, T, width / heads)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionTransformer(nn.Module):
    """ViT: (N, 3, size, size) -> logits (N, num_classes). ViT-tiny has width 192, 3 heads and depth 12.

    Differs from the paper: the mean over the patches replaces the class token.
    """

    def __init__(
        self, size: int = 224, patch: int = 16, width: int = 192, depth: int = 12, num_classes: int = 1000
    ) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, width // 64) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position  # (N, patches, width)
        return self.head(self.norm(self.blocks(x)).mean(1))
