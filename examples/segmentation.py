"""Segmentation: an encoder and decoder with a skip connection, trained on noisy shapes, compared by intersection over union.

python examples/segmentation.py
"""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat


class SmallUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.down1(x)
        coarse = F.relu(self.up(self.down2(fine)))
        return self.head(torch.cat([fine, coarse], 1))  # (N, 3, H, W): background, square, disc


def scenes(n: int) -> tuple[Tensor, Tensor]:
    """Noisy images (n, 1, 24, 24) of one square and one disc each, and the class of every pixel."""
    y, x = torch.meshgrid(torch.arange(24), torch.arange(24), indexing="ij")
    centre = torch.randint(5, 19, (n, 2, 2, 1, 1))
    square = ((y - centre[:, 0, 0]).abs() < 4) & ((x - centre[:, 0, 1]).abs() < 4)
    disc = (y - centre[:, 1, 0]) ** 2 + (x - centre[:, 1, 1]) ** 2 < 20
    target = torch.where(disc, 2, square.long())
    return (target.float() + 0.4 * torch.randn(n, 24, 24))[:, None], target


def fit(model: nn.Module, steps: int, lr: float) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    model.train()
    for step in range(steps):
        batch = slice(16 * step % len(images), 16 * step % len(images) + 16)
        optimizer.zero_grad()
        F.cross_entropy(model(images[batch]), masks[batch]).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def mean_iou(model: nn.Module) -> float:
    """Intersection over union of the three classes on the test scenes, in %."""
    found = model(test_images).argmax(1)
    each = [((found == c) & (test_masks == c)).sum() / ((found == c) | (test_masks == c)).sum() for c in range(3)]
    return 100 * torch.stack(each).mean().item()


torch.manual_seed(0)
(images, masks), (test_images, test_masks) = scenes(512), scenes(128)
model = fit(SmallUNet(), 120, 1e-2)

prepared = qat.prepare(model, "w2a4", images[:8])
qat.calibrate(prepared, [images[:64]])
calibrated = copy.deepcopy(prepared).eval()
fit(prepared, 60, 1e-3)

integer = qat.convert(prepared)
path = Path("outputs/examples/segmentation.onnx")
path.parent.mkdir(parents=True, exist_ok=True)
qat.export_onnx(integer, images[:8], path, dynamic={"x": (0, 2, 3)})  # the file takes images of any size
check = qat.verify(path, integer, [test_images, scenes(2)[0].tile(1, 1, 2, 1)], prepared, record=True)
for name, network in {"float": model, "calibrated": calibrated, "trained": prepared}.items():
    print(f"{name:10s} mean IoU {mean_iou(network):.1f} %")
print(f"{path}: integers {mean_iou(integer):.1f} %, {check.code_mismatches} of {check.codes_compared:,} codes differ")
assert check.passed, check
