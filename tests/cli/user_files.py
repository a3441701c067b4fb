"""Files that a user has: a network, data, and what other tools saved of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

SOURCE = """
import torch
from torch import nn


def make():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 4),
    )
    network.example_inputs = torch.zeros(1, 3, 8, 8)
    return network.eval()


def batches():
    generator = torch.Generator().manual_seed(0)
    for _ in range(4):
        yield torch.randn(16, 3, 8, 8, generator=generator), torch.randint(0, 4, (16,), generator=generator)


def mean_of_outputs(outputs, labels):
    return outputs.mean()


def fails():
    raise RuntimeError("no such thing")


def ends():
    raise SystemExit(3)


def yields_text():
    yield "text"


def says_a_path():
    network = make()
    network.example_inputs = "x.npy"
    return network


def yields_nothing():
    yield torch.zeros(0, 3, 8, 8)


def yields_three():
    yield torch.zeros(4, 3, 8, 8), torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)


def yields_once():
    yield torch.zeros(4, 3, 8, 8)
    raise KeyError("image")


def without_layers():
    return nn.ReLU()


def grey():
    return nn.Conv2d(1, 4, 1)


def gives_a_number():
    return 3


def talks():
    print("a file of the user's may print what it likes")
    return make()


network = make()
grey_images = [torch.zeros(4, 1, 8, 8)] * 2
in_float64 = [torch.zeros(4, 3, 8, 8, dtype=torch.float64)] * 2
of_other_classes = [(torch.zeros(8, 3, 8, 8), torch.full((8,), 99))] * 2
of_negative_classes = [(torch.zeros(8, 3, 8, 8), torch.full((8,), -3))] * 2
of_other_targets = [(torch.zeros(8, 3, 8, 8), torch.zeros(8))] * 2
not_numbers = [torch.full((4, 3, 8, 8), torch.nan)] * 2
not_numbers_later = [*[torch.zeros(4, 3, 8, 8)] * 3, *not_numbers]
no_targets = [(torch.zeros(8, 3, 8, 8), torch.full((8, 4), torch.nan))] * 2
numbers = [1, 2]
"""


def write_user_files(folder: Path) -> Path:
    """net.py, net.pt2, net.safetensors, data.npz, images/ and classes/ in `folder`."""
    from safetensors.torch import save_file

    (folder / "net.py").write_text(SOURCE)
    network = made(folder)
    example = torch.randn(2, 3, 8, 8)
    batch = torch.export.Dim("batch")
    torch.export.save(torch.export.export(network, (example,), dynamic_shapes=({0: batch},)), folder / "net.pt2")
    save_file(network.state_dict(), folder / "net.safetensors")
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 3, 8, 8))
    np.savez(folder / "data.npz", x=x, y=generator.integers(0, 4, 64))
    for i in range(4):
        for name in (folder / "images" / f"{i}.png", folder / "classes" / "ab"[i % 2] / f"{i}.png"):
            name.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (12, 10, 3), dtype=np.uint8)).save(name)
    return folder


def made(folder: Path) -> nn.Module:
    """The network of net.py."""
    names: dict[str, object] = {}
    exec((folder / "net.py").read_text(), names)
    network = names["make"]()  # type: ignore[operator]
    assert isinstance(network, nn.Module)
    return network
