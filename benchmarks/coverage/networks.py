"""All networks that are measured, by name."""

from __future__ import annotations

import importlib.util
from fnmatch import fnmatch
from functools import partial

import torch
from torch import nn

from benchmarks.coverage import (
    handwritten_convolutional,
    huggingface_networks,
    timm_networks,
    torchvision_networks,
    yolo,
)
from benchmarks.coverage import handwritten_sequences as sequences
from benchmarks.coverage import handwritten_structures as structures
from benchmarks.coverage.case import Case, images, noise, tokens


def _handwritten() -> list[Case]:
    of_structures = (
        ("U-Net", structures.UNet, images(32)),
        ("feature pyramid", structures.FeaturePyramid, images(64)),
        ("YOLO-like", structures.YoloLike, images(64)),
        ("depth to space", structures.DepthToSpace, images(16)),
        ("autoencoder", structures.Autoencoder, images(32)),
        ("siamese", structures.Siamese, lambda n: (torch.randn(n, 3, 16, 16), torch.randn(n, 3, 16, 16))),
        ("image and table", structures.ImageAndTable, lambda n: (torch.randn(n, 3, 16, 16), torch.randn(n, 5))),
        (
            "dict input",
            structures.DictInput,
            lambda n: ({"image": torch.randn(n, 3, 16, 16), "age": torch.rand(n, 1)},),
        ),
        ("regression", structures.Regression, images(16)),
        ("PointNet", structures.PointNet, noise(3, 32)),
        ("causal convolutions", structures.CausalConvolutions, noise(4, 32)),
        ("volumes", structures.Volumes, noise(1, 16, 16, 16)),
        ("residual MLP", structures.ResidualMLP, noise(20)),
        ("stacked branches", structures.Stacked, images(16)),
    )
    of_sequences = (
        ("attention by hand", sequences.Transformer, noise(12, 16)),
        ("scaled dot product", partial(sequences.Transformer, True), noise(12, 16)),
        ("MultiheadAttention", sequences.MultiheadAttention, lambda n: (torch.randn(n, 12, 16), _padding(n))),
        ("TransformerEncoder", sequences.TransformerEncoder, tokens(12, 50)),
        ("LSTM", partial(sequences.RecurrentClassifier, nn.LSTM), tokens(12, 50)),
        ("GRU", partial(sequences.RecurrentClassifier, nn.GRU, True), tokens(12, 50)),
        ("convolutions, then LSTM", sequences.ConvolutionsThenLstm, noise(1, 16, 64)),
        ("bag of words", sequences.BagOfWords, tokens(12, 50)),
        ("DETR-like", sequences.DetrLike, images(32)),
        ("language model", sequences.LanguageModel, tokens(12, 50)),
    )
    found = [
        Case(f"hand-written/{name}", build, images(32)) for name, build in handwritten_convolutional.BODIES.items()
    ]
    return found + [
        Case(f"hand-written/{name}", build, inputs) for name, build, inputs in (*of_structures, *of_sequences)
    ]


def _padding(n: int) -> torch.Tensor:
    """A mask (N, 12), true for the last elements of every second sample."""
    mask = torch.zeros(n, 12, dtype=torch.bool)
    mask[::2, 9:] = True
    return mask


def cases() -> dict[str, Case]:
    """Every network by name, the small ones first."""
    found = [
        *_handwritten(),
        *huggingface_networks.cases(),
        *torchvision_networks.cases(),
        *timm_networks.cases(),
        *yolo.cases(),
    ]
    return {case.name: case for case in found}


def choose(patterns: list[str]) -> dict[str, Case]:
    """The networks whose name matches one of the patterns, or contains it; all if there is no pattern."""
    if len(patterns) == 1 and patterns[0] in (known := cases()):
        return {patterns[0]: known[patterns[0]]}
    chosen = {n: c for n, c in cases().items() if not patterns or any(p in n or fnmatch(n, p) for p in patterns)}
    if not chosen:
        raise ValueError(f"no network is called like {', '.join(patterns)}: write a part of a name, such as resnet18.")
    return chosen


def is_installed(case: Case) -> bool:
    """Whether the package that a network comes from is there."""
    return not case.needs or importlib.util.find_spec(case.needs) is not None
