"""Classifiers, segmentation, detection and video networks of torchvision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torchvision.models
from torch import Tensor, nn
from torchvision.models import detection

from benchmarks.coverage.case import Case, images, noise

LARGEST = 90e6
"""Parameters of the largest classifier that is measured: a larger one has a smaller one of its family beside it."""
LARGE = ("vgg11", "vgg16_bn")
"""Larger ones, whose family has no smaller one."""
SIZES = {"inception_v3": 299, "maxvit_t": 224, "vit_b_16": 224, "vit_b_32": 224, "swin_v2": 128}
"""Pixels per side, by the beginning of the name, where 64 is not enough."""
VIDEO = {"mvit_v1_b": (16, 224), "mvit_v2_s": (16, 224), "swin3d_t": (8, 64), "s3d": (16, 224)}
"""Frames and pixels per side; 8 frames of 64 pixels otherwise."""
VIDEOS = ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v2_s", "swin3d_t")
SEGMENTATIONS = (
    "fcn_resnet50",
    "fcn_resnet101",
    "deeplabv3_resnet50",
    "deeplabv3_resnet101",
    "deeplabv3_mobilenet_v3_large",
    "lraspp_mobilenet_v3_large",
)
DETECTIONS = (
    "ssdlite320_mobilenet_v3_large",
    "ssd300_vgg16",
    "retinanet_resnet50_fpn",
    "retinanet_resnet50_fpn_v2",
    "fcos_resnet50_fpn",
    "fasterrcnn_resnet50_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "fasterrcnn_mobilenet_v3_large_fpn",
)


class DetectionNetwork(nn.Module):
    """What a detector learns with: backbone and head. Anchors, decoding and non-maximum suppression come behind it."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, x: Tensor) -> dict[str, Tensor] | tuple[list[Tensor], list[Tensor]]:
        return self.head(list(self.backbone(x).values()))


class RegionHead(nn.Module):
    """What Faster and Mask R-CNN compute for every region (N, 256, 7, 7): classes, boxes and masks."""

    def __init__(self) -> None:
        super().__init__()
        detector = detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None)
        self.heads: Any = detector.roi_heads

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        classes, boxes = self.heads.box_predictor(self.heads.box_head(regions))
        return classes, boxes, self.heads.mask_predictor(self.heads.mask_head(regions))


def _detection(name: str) -> nn.Module:
    return DetectionNetwork(getattr(detection, name)(weights=None, weights_backbone=None))


def _segmentation(name: str) -> nn.Module:
    return getattr(torchvision.models.segmentation, name)(weights=None, weights_backbone=None)


def _classifier(name: str) -> nn.Module:
    options = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    return torchvision.models.get_model(name, weights=None, **options)


def classifiers() -> list[str]:
    """The names of all classifiers of torchvision that are not too large."""
    names = torchvision.models.list_models(module=torchvision.models)
    parameters = {n: torchvision.models.get_model_weights(n)["DEFAULT"].meta["num_params"] for n in names}
    return [name for name in names if parameters[name] <= LARGEST or name in LARGE]


def cases() -> list[Case]:
    """All networks of torchvision."""

    def case(kind: str, name: str, build: Callable[[str], nn.Module], size: int) -> Case:
        return Case(f"torchvision{kind}/{name}", partial(build, name), images(size))

    found = [
        case("", name, _classifier, next((s for start, s in SIZES.items() if name.startswith(start)), 64))
        for name in classifiers()
    ]
    found += [case(" segmentation", name, _segmentation, 64) for name in SEGMENTATIONS]
    found += [case(" detection", name, _detection, 320 if "ssd" in name else 128) for name in DETECTIONS]
    found.append(Case("torchvision detection/region heads", RegionHead, noise(256, 7, 7)))
    for name in VIDEOS:
        frames, size = VIDEO.get(name, (8, 64))
        build = partial(torchvision.models.get_model, name, weights=None)
        found.append(Case(f"torchvision video/{name}", build, noise(3, frames, size, size)))
    return found
