"""Detection: one box and class for each cell of a grid. Boxes are decoded and sorted out behind the file, in float.

python examples/detection.py
"""

import copy
from pathlib import Path

import torch
import torch.nn.functional as F
from digits import images as digit_images
from digits import labels as digit_labels
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

import qat

SIZE, CELLS = 32, 4  # pixels and cells along a side
PER_CELL = SIZE // CELLS


class Detector(nn.Module):
    """Images (N, 1, 32, 32) -> (N, 1 + 4 + 10, 4, 4): is a digit's centre here, its box, its class."""

    def __init__(self) -> None:
        super().__init__()
        sizes = ((1, 16, 2), (16, 32, 2), (32, 64, 2), (64, 64, 1))  # channels in and out, stride
        blocks = [nn.Sequential(nn.Conv2d(a, b, 3, s, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b, s in sizes]
        self.backbone = nn.Sequential(*blocks)
        self.head = nn.Conv2d(64, 15, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def scenes(n: int, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
    """Two digits of 8 to 14 pixels on each image; their boxes (n, 2, 4) as x1, y1, x2, y2, and their classes (n, 2)."""
    canvas = torch.full((n, 1, SIZE, SIZE), digit_images.min().item()) + 0.1 * torch.randn(n, 1, SIZE, SIZE)
    boxes, classes = torch.zeros(n, 2, 4), torch.zeros(n, 2, dtype=torch.long)
    for i in range(n):
        for k in range(2):  # one in the left half, one in the right
            side = int(torch.randint(8, 15, ()))
            x, y = 16 * k + int(torch.randint(0, 17 - side, ())), int(torch.randint(0, SIZE + 1 - side, ()))
            which = int(torch.randint(first, last, ()))
            digit = F.interpolate(digit_images[which][None], size=(side, side), mode="bilinear")
            canvas[i, :, y : y + side, x : x + side] = digit[0]
            boxes[i, k] = torch.tensor([x, y, x + side, y + side])
            classes[i, k] = digit_labels[which]
    return canvas, boxes, classes


def loss(output: Tensor, boxes: Tensor, classes: Tensor) -> Tensor:
    """Is there a digit, where its box's sides are from the cell's centre, and which digit."""
    n = torch.arange(len(output))[:, None].expand(-1, 2)
    column, row = ((boxes[..., :2] + boxes[..., 2:]) / 2 // PER_CELL).long().unbind(-1)
    there = torch.zeros(len(output), CELLS, CELLS)
    there[n, row, column] = 1
    centre = (torch.stack([column, row, column, row], -1) + 0.5) * PER_CELL
    cells = output[n, :, row, column]  # (N, 2, 15)
    box = F.smooth_l1_loss(cells[..., 1:5], (boxes - centre) / PER_CELL)
    kind = F.cross_entropy(cells[..., 5:].flatten(0, 1), classes.flatten())
    return F.binary_cross_entropy_with_logits(output[:, 0], there) + 2 * box + kind


def decode(output: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For each image the boxes that remain after non-maximum suppression, and their classes."""
    y, x = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
    centre = (torch.stack([x, y, x, y]) + 0.5) * PER_CELL
    found = []
    for cells in output:
        score, box = cells[0].sigmoid().flatten(), (cells[1:5] * PER_CELL + centre).flatten(1).T
        keep = nms(box, score, 0.3)
        keep = keep[score[keep] > 0.5]
        found.append((box[keep], cells[5:].flatten(1).argmax(0)[keep]))
    return found


@torch.no_grad()
def found_share(model: nn.Module) -> float:
    """Share of the digits that a box of the right class covers with an IoU of at least 0.5, in %."""
    hits = 0
    for (box, kind), boxes, classes in zip(decode(model(test[0])), test[1], test[2], strict=True):
        hits += int(((box_iou(boxes, box) > 0.5) & (classes[:, None] == kind)).any(1).sum())
    return 100 * hits / test[2].numel()


def fit(model: nn.Module, epochs: int, lr: float) -> nn.Module:
    optimizer = torch.optim.AdamW(model.parameters(), lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    model.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(train[0])).split(32):
            optimizer.zero_grad()
            loss(model(train[0][batch]), train[1][batch], train[2][batch]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


torch.manual_seed(0)
train, test = scenes(1000, 0, 1297), scenes(200, 1297, 1797)
model = fit(Detector(), 16, 5e-3)

prepared = qat.prepare(model, "w2a4", train[0][:8])
qat.calibrate(prepared, [train[0][:128]])
calibrated = copy.deepcopy(prepared).eval()
fit(prepared, 8, 2e-3)

integer = qat.convert(prepared)
path = Path("outputs/examples/detection.onnx")
path.parent.mkdir(parents=True, exist_ok=True)
qat.export_onnx(integer, train[0][:8], path)
check = qat.verify(path, integer, [test[0]], prepared, record=True)
for name, network in {"float": model, "calibrated": calibrated, "trained": prepared}.items():
    print(f"{name:10s} finds {found_share(network):.1f} % of the digits")
print(
    f"{path}: integers {found_share(integer):.1f} %, {check.code_mismatches} of {check.codes_compared:,} codes differ"
)
assert check.passed, check
