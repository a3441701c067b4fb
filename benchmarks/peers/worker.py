"""Measures one peer on ResNet-20, inside that peer's environment. `python -m benchmarks.peers` starts it.

Needs torch and the peer; the network's file is loaded by its path, so that nobody needs the rest of this project.
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import json
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.comparison import compare, line
from benchmarks.measure import one_line
from benchmarks.peers.peer import peer
from benchmarks.training_step import TrainingStep

NETWORK = Path(__file__).parents[2] / "qat/models/resnet_cifar.py"


def resnet20() -> nn.Module:
    """The project's own ResNet-20."""
    spec = importlib.util.spec_from_file_location("resnet_cifar", NETWORK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ResNetCifar(20)


def measure(name: str, batch: int, rounds: int, modes: list[str], out: Path) -> None:
    """Write {"settings", "versions", and for each mode its steps, or the peer's own error}; anew after each mode."""
    library = peer(name)
    packages = [*library.PACKAGES, "torch"]
    found: dict[str, Any] = {
        "settings": library.SETTINGS,
        "versions": {p: metadata.version(p) for p in dict.fromkeys(packages)},
        "batch": batch,
    }
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    network = resnet20().train()
    for mode in modes:
        try:
            prepared = library.prepare(copy.deepcopy(network), x)
            if mode == "eager":
                found["parameters"] = sum(p.numel() for p in prepared.parameters() if p.requires_grad)
            for module in prepared.modules():  # exported graphs refuse .train()
                module.training = True
            steps = {"float": TrainingStep(copy.deepcopy(network), x, y), name: TrainingStep(prepared, x, y)}
            found[mode] = {"steps": compare(steps, rounds, compiled=mode == "compiled")}
            print(f"{name}, {mode}\n{line(name, found[mode]['steps'][name])}", flush=True)
        except Exception as error:
            found[mode] = {"error": one_line(error)}
            print(f"{name}, {mode}: {found[mode]['error']}", flush=True)
        out.write_text(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--modes", nargs="+", required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure(options.name, options.batch, options.rounds, options.modes, options.out)


if __name__ == "__main__":
    main()
