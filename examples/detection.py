"""Detection: one box and class for each cell of a grid. Boxes are decoded and sorted out behind the file, in float.

The score is the mean average precision at an intersection over union of 0.5: what PTQ loses of it, and what QAT wins back.

python examples/detection.py
"""

import copy
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from digits import images as digit_images
from digits import labels as digit_labels
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

import qat
from qat.ptq import AdaRound, Calibrate, apply_passes

POLICY = "w2a4"
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


class Found(NamedTuple):
    """What remains of an image after non-maximum suppression: boxes (n, 4), their classes and their scores (n,)."""

    boxes: Tensor
    classes: Tensor
    scores: Tensor


def decode(output: Tensor) -> list[Found]:
    """The detections of each image. A score is the probability of a digit times that of its class."""
    y, x = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
    centre = (torch.stack([x, y, x, y]) + 0.5) * PER_CELL
    found = []
    for cells in output:
        probability, kind = cells[5:].flatten(1).softmax(0).max(0)
        score, box = cells[0].sigmoid().flatten() * probability, (cells[1:5] * PER_CELL + centre).flatten(1).T
        keep = nms(box, score, 0.3)
        found.append(Found(box[keep], kind[keep], score[keep]))
    return found


@torch.no_grad()
def mean_average_precision(model: nn.Module) -> float:
    """Mean over the ten classes of the area under precision over recall, in %."""
    images, boxes, classes = test
    found = decode(model(images))
    return 100 * sum(average_precision(found, boxes, classes, digit) for digit in range(10)) / 10


def average_precision(found: list[Found], boxes: Tensor, classes: Tensor, digit: int) -> float:
    """The area for one class. The surest detection of a digit counts, further ones of the same digit are wrong."""
    hits: list[tuple[float, bool]] = []
    for one, true_boxes, true_classes in zip(found, boxes, classes, strict=True):
        overlaps = box_iou(one.boxes[one.classes == digit], true_boxes[true_classes == digit])
        free = torch.ones(overlaps.shape[1], dtype=torch.bool)
        for score, overlap in zip(one.scores[one.classes == digit], overlaps, strict=True):  # the surest first
            best = int((overlap * free).argmax()) if len(free) else -1
            hits.append((float(score), best >= 0 and bool(free[best]) and float(overlap[best]) > 0.5))
            if hits[-1][1]:
                free[best] = False
    if not hits:
        return 0.0
    right = torch.tensor([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])]).cumsum(0)
    precision = right / torch.arange(1, len(right) + 1)
    best_behind = precision.flip(0).cummax(0).values.flip(0)
    recall = right / int((classes == digit).sum())
    return float((best_behind * recall.diff(prepend=torch.zeros(1))).sum())


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

rounded = apply_passes([Calibrate("MSE"), AdaRound(iterations=100)], model, POLICY, [train[0][:128]])

prepared = qat.prepare(model, POLICY, train[0][:8])
qat.calibrate(prepared, [train[0][:128]])
calibrated = copy.deepcopy(prepared).eval()
fit(prepared, 8, 2e-3)

integer = qat.convert(prepared)
path = Path("outputs/examples/detection.onnx")
path.parent.mkdir(parents=True, exist_ok=True)
qat.export_onnx(integer, train[0][:8], path)
check = qat.verify(path, integer, [test[0]], prepared, record=True)
rows = {"float": model, "PTQ, calibrated": calibrated, "PTQ, AdaRound": rounded, "QAT": prepared}
rows["QAT, file"] = qat.export.OnnxRuntimeNetwork(path)
for name, network in rows.items():
    print(f"{name:16s} mean average precision {mean_average_precision(network):.1f} %")
print(f"{path}: {check.code_mismatches} of {check.codes_compared:,} codes differ; behind it, in float: decode and nms")
assert check.passed, check
