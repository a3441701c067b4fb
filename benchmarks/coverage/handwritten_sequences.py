"""Networks on sequences as people write them: attention, recurrent layers, embeddings."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.coverage.handwritten_convolutional import conv


class Attention(nn.Module):
    """Multi-head attention from matrix products."""

    def __init__(self, width: int = 32, heads: int = 4, scaled_dot_product: bool = False) -> None:
        super().__init__()
        self.heads, self.scaled_dot_product = heads, scaled_dot_product
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4).unbind(0)
        if self.scaled_dot_product:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.size(-1))
            y = scores.softmax(dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(n, t, c))


class Transformer(nn.Module):
    """Pre-norm blocks on vectors (N, T, 16), mean over time."""

    def __init__(self, scaled_dot_product: bool = False) -> None:
        super().__init__()
        self.inputs, self.position = nn.Linear(16, 32), nn.Parameter(torch.randn(1, 12, 32) / 8)
        self.attention = nn.ModuleList([Attention(scaled_dot_product=scaled_dot_product) for _ in range(2)])
        self.mlp = nn.ModuleList([nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(2)])
        self.norms, self.head = nn.ModuleList([nn.LayerNorm(32) for _ in range(4)]), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x) + self.position
        for i, (attention, mlp) in enumerate(zip(self.attention, self.mlp, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x.mean(1))


class MultiheadAttention(nn.Module):
    """nn.MultiheadAttention with a mask by keyword."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.attention = nn.Linear(16, 32), nn.MultiheadAttention(32, 4, batch_first=True)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.inputs(x)
        y, _ = self.attention(h, h, h, key_padding_mask=mask, need_weights=False)
        return self.head((h + y).mean(1))


class TransformerEncoder(nn.Module):
    """nn.TransformerEncoder behind an embedding, with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(50, 32), nn.Embedding(12, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(32, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.size(1), device=tokens.device)
        x = self.embedding(tokens) * math.sqrt(32) + self.position(positions)
        return self.head(self.encoder(x)[:, 0])


class RecurrentClassifier(nn.Module):
    """Embedding, LSTM or GRU, the last state."""

    def __init__(self, layer: type[nn.LSTM] | type[nn.GRU], bidirectional: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.recurrent = layer(16, 32, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(64 if bidirectional else 32, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        states, _ = self.recurrent(self.embedding(tokens))
        return self.head(states[:, -1])


class ConvolutionsThenLstm(nn.Module):
    """A recognizer of text lines: convolutions, columns as time, LSTM, a class for every column."""

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(conv(1, 16, stride=2), conv(16, 32, stride=2))
        self.recurrent, self.head = nn.LSTM(128, 32, bidirectional=True), nn.Linear(64, 20)

    def forward(self, x: Tensor) -> Tensor:
        x = self.convolutions(x)
        columns, _ = self.recurrent(x.permute(3, 0, 1, 2).flatten(2))
        return self.head(columns).permute(1, 0, 2)


class BagOfWords(nn.Module):
    """Embedding, mean, MLP; and an EmbeddingBag beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.bag = nn.Embedding(50, 16), nn.EmbeddingBag(50, 16, mode="mean")
        self.layers = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.layers(torch.cat([self.embedding(tokens).mean(1), self.bag(tokens)], -1))


class DetrLike(nn.Module):
    """Convolutions, a transformer with learned queries, heads for classes and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(conv(3, 16, stride=2), conv(16, 32, stride=2), conv(32, 32, stride=2))
        self.transformer = nn.Transformer(32, 4, 1, 1, 64, batch_first=True)
        self.queries, self.position = nn.Parameter(torch.rand(5, 32)), nn.Parameter(torch.rand(1, 16, 32))
        self.classes, self.boxes = nn.Linear(32, 7), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        memory = self.backbone(x).flatten(2).permute(0, 2, 1)
        queries = self.queries.unsqueeze(0).repeat(memory.size(0), 1, 1)
        h = self.transformer(self.position + memory, queries)
        return {"logits": self.classes(h), "boxes": self.boxes(h).sigmoid()}


class RMSNorm(nn.Module):
    """Root mean square normalization, by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class LanguageModel(nn.Module):
    """A causal language model: RMSNorm, rotary-free attention with a triangular mask, gated MLP, tied head."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 32)
        self.norms, self.qkv = nn.ModuleList([RMSNorm(32) for _ in range(3)]), nn.Linear(32, 96, bias=False)
        self.out, self.gate, self.up, self.down = (nn.Linear(a, b) for a, b in ((32, 32), (32, 64), (32, 64), (64, 32)))
        self.register_buffer("mask", torch.tril(torch.ones(12, 12)).bool())
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, -1)
        t = tokens.shape[1]
        scores = (q @ k.transpose(1, 2) / 32**0.5).masked_fill(~self.mask[:t, :t], float("-inf"))
        x = x + self.out(F.softmax(scores, -1) @ v)
        h = self.norms[1](x)
        x = x + self.down(F.silu(self.gate(h)) * self.up(h))
        return self.head(self.norms[2](x))
