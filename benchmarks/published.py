"""Accuracies that papers and their authors' repositories report, and the rows of `benchmarks.menu` that they belong to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """One network of one source, in float and at several widths.

    Attributes:
        method: as the source calls it.
        row: our row of `benchmarks.menu` that does the same; "" if there is none.
        network: network and data.
        float_top1: in %.
        top1: policy (w4a4, ...) -> in %.
        source: who reports it.
        remark: what its training had that ours has not.
    """

    method: str
    row: str
    network: str
    float_top1: float
    top1: dict[str, float]
    source: str
    remark: str = ""


CIFAR = "ResNet-20, CIFAR-10"
IMAGENET = "ResNet-18, ImageNet"
_AT = ("w4a4", "w3a3", "w2a2")


def _imagenet(method: str, row: str, w4: float, w3: float, w2: float, source: str, base: float = 70.5) -> Published:
    return Published(method, row, IMAGENET, base, dict(zip(_AT, (w4, w3, w2), strict=True)), source)


TRAINED = (
    Published(
        "APoT",
        "apot",
        CIFAR,
        92.96,
        {"w4a4": 92.45, "w3a3": 92.49, "w2a2": 90.96},
        "Li et al. 2020, the authors' repository",
        "300 epochs, progressively from 32 over 4 and 3 to 2 bits",
    ),
    _imagenet("PACT", "pact", 69.2, 68.1, 64.4, "Choi et al. 2018"),
    _imagenet("DoReFa", "dorefa", 68.1, 67.5, 64.7, "Zhou et al. 2016, as others ran it"),
    _imagenet("DSQ", "dsq", 69.6, 68.7, 65.2, "Gong et al. 2019"),
    _imagenet("QIL", "qil", 70.1, 69.2, 65.7, "Jung et al. 2019"),
    _imagenet("APoT", "apot", 70.7, 69.9, 67.3, "Li et al. 2020"),
    _imagenet("LSQ", "lsq", 71.1, 70.2, 67.6, "Esser et al. 2020"),
    _imagenet("LCQ", "lcq", 71.5, 70.6, 68.9, "Yamamoto 2021"),
    _imagenet("N2UQ", "n2uq", 72.9, 71.9, 69.4, "Liu et al. 2022", base=71.8),
)
"""Quantization-aware training."""

POST_TRAINING = (
    Published(
        "AdaRound",
        "PTQ AdaRound",
        IMAGENET,
        71.06,
        {"w4a4": 68.67, "w3a3": 64.18},
        "Nagel et al. 2020, as others ran it",
    ),
    Published(
        "BRECQ", "PTQ BRECQ", IMAGENET, 71.06, {"w4a4": 68.52, "w3a3": 64.24}, "Li et al. 2021, as others ran it"
    ),
    Published(
        "QDrop", "PTQ QDrop", IMAGENET, 71.06, {"w4a4": 68.84, "w3a3": 65.42}, "Wei et al. 2022, as others ran it"
    ),
)
"""Post-training quantization."""
