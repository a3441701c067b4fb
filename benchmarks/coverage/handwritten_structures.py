"""Networks as people write them whose structure is the point: several inputs and outputs, maps, sequences, points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.coverage.handwritten_convolutional import conv


class UNet(nn.Module):
    """Down, up by a transposed convolution, concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.up = conv(3, 16), conv(16, 32), nn.ConvTranspose2d(32, 16, 2, stride=2)
        self.c, self.head = conv(32, 16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        up = self.up(self.b(F.max_pool2d(a, 2)))
        return self.head(self.c(torch.cat([a, up], 1)))


class FeaturePyramid(nn.Module):
    """Lateral convolutions; nearest and bilinear interpolation to the size of the finer map; a list of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 16, stride=2), conv(16, 32, stride=2), conv(32, 64, stride=2)])
        self.lateral = nn.ModuleList([nn.Conv2d(c, 16, 1) for c in (16, 32, 64)])
        self.head = nn.Conv2d(16, 4, 3, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        a, b, c = (lateral(m) for lateral, m in zip(self.lateral, maps, strict=True))
        b = b + F.interpolate(c, size=b.shape[-2:], mode="nearest")
        a = a + F.interpolate(b, scale_factor=2, mode="bilinear", align_corners=False)
        return [self.head(level) for level in (a, b, c)]


class YoloLike(nn.Module):
    """SiLU, split and concatenation, spatial pyramid pooling, upsampling, two scales, sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = conv(3, 16, stride=2, activation=nn.SiLU), conv(16, 32, stride=2, activation=nn.SiLU)
        self.inner, self.join = conv(16, 16, activation=nn.SiLU), conv(48, 32, 1, activation=nn.SiLU)
        self.deep, self.pool = conv(32, 32, stride=2, activation=nn.SiLU), nn.MaxPool2d(5, 1, 2)
        self.spp, self.up = conv(128, 32, 1, activation=nn.SiLU), nn.Upsample(scale_factor=2)
        self.heads = nn.ModuleList([nn.Conv2d(64, 9, 1), nn.Conv2d(32, 9, 1)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        parts = list(x.chunk(2, 1))
        parts.append(self.inner(parts[-1]))
        fine = self.join(torch.cat(parts, 1))
        deep = [self.deep(fine)]
        deep.extend(self.pool(deep[-1]) for _ in range(3))
        coarse = self.spp(torch.cat(deep, 1))
        maps = torch.cat([fine, self.up(coarse)], 1), coarse
        found = [head(m).flatten(2) for head, m in zip(self.heads, maps, strict=True)]
        boxes, classes = torch.cat(found, 2).split((4, 5), 1)
        return torch.cat([boxes, classes.sigmoid()], 1)


class DepthToSpace(nn.Module):
    """Space to depth by slices, depth to space by PixelShuffle and by view and permute."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.shuffle = conv(12, 16), nn.Conv2d(16, 64, 3, padding=1), nn.PixelShuffle(2)
        self.out = nn.Conv2d(16, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1)
        x = self.out(self.shuffle(self.up(self.stem(x))))
        n, c, h, w = x.shape
        return x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, h * 2, w * 2)


class Autoencoder(nn.Module):
    """Encoder, latent vector, decoder of transposed convolutions; both are returned in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(conv(3, 8, stride=2), conv(8, 16, stride=2), nn.Flatten())
        self.latent, self.grow = nn.Linear(1024, 16), nn.Linear(16, 1024)
        up = (
            nn.ConvTranspose2d(16, 8, 4, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Sigmoid(),
        )
        self.decoder = nn.Sequential(nn.Unflatten(1, (16, 8, 8)), *up)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        latent = self.latent(self.encoder(x))
        return {"image": self.decoder(F.relu(self.grow(latent))), "latent": latent}


class Siamese(nn.Module):
    """Two images through one network; distance and cosine similarity."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(conv(3, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 8))

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.network(a), self.network(b)
        return (a - b).abs(), F.cosine_similarity(a, b)


class ImageAndTable(nn.Module):
    """An image and a row of numbers, the second with a default."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.table, self.head = conv(3, 16), nn.Linear(5, 16), nn.Linear(32, 3)

    def forward(self, image: Tensor, row: Tensor | None = None) -> Tensor:
        x = self.image(image).mean((2, 3))
        y = F.relu(self.table(row)) if row is not None else torch.zeros_like(x)
        return self.head(torch.hstack([x, y]))


class DictInput(nn.Module):
    """One dict of tensors as input."""

    def __init__(self) -> None:
        super().__init__()
        self.network, self.head = conv(3, 16), nn.Linear(17, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        x = self.network(batch["image"]).mean((-2, -1))
        return self.head(torch.cat([x, batch["age"]], dim=-1))


class Regression(nn.Module):
    """A single number per sample, squeezed."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(conv(3, 16), nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(16, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze()


class PointNet(nn.Module):
    """Points (N, 3, P) through pointwise convolutions, a learned rotation, and a maximum over points."""

    def __init__(self) -> None:
        super().__init__()
        self.rotation = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU())
        self.matrix = nn.Linear(32, 9)
        self.layers = nn.Sequential(nn.Conv1d(3, 32, 1), nn.BatchNorm1d(32), nn.ReLU(), nn.Conv1d(32, 64, 1), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.matrix(torch.max(self.rotation(x), 2)[0]).view(-1, 3, 3) + torch.eye(3)
        y = self.layers(torch.bmm(x.transpose(1, 2), matrix).transpose(1, 2))
        return F.log_softmax(self.head(y.amax(dim=2)), dim=-1)


class CausalConvolutions(nn.Module):
    """Dilated causal convolutions over time with residuals; the end is cut off."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs = nn.Conv1d(4, 16, 1)
        self.layers = nn.ModuleList([nn.Conv1d(16, 16, 3, padding=2 * d, dilation=d) for d in (1, 2, 4)])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for layer in self.layers:
            x = x + F.relu(layer(x)[:, :, : x.size(2)])
        return self.head(x[:, :, -1])


class Volumes(nn.Module):
    """3d convolutions and pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Conv3d(1, 8, 3, padding=1), nn.BatchNorm3d(8), nn.Conv3d(8, 16, 3, stride=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.a(x))), 2)
        return self.head(F.adaptive_avg_pool3d(F.relu(self.b(x)), 1).flatten(1))


class ResidualMLP(nn.Module):
    """Linear layers with BatchNorm and dropout on a table."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.head = nn.Linear(20, 64), nn.Linear(64, 2)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(nn.BatchNorm1d(64), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 64))
                for _ in range(3)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.inputs(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(F.relu(x))


class Stacked(nn.Module):
    """Branches that are stacked and weighted by a softmax, einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([conv(3, 16, kernel) for kernel in (1, 3, 5)])
        self.weights, self.head = nn.Linear(16, 3), nn.Parameter(torch.randn(10, 16) / 4)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack([branch(x) for branch in self.branches], dim=1)
        weights = F.softmax(self.weights(branches.sum(1).mean((2, 3))), dim=1)
        mixed = (branches * weights[:, :, None, None, None]).sum(dim=1)
        return torch.einsum("nc,oc->no", mixed.mean((2, 3)), self.head)
