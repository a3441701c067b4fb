"""Measure one library on ResNet-20, inside its own environment. `python -m benchmarks.peers` starts this program.

Needs only torch and the library: the network is loaded by the path of its file, so that the rest of this project need not be
installed.
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

from benchmarks.failure import failure_line
from benchmarks.peers.peer import load_peer
from benchmarks.step_comparison import compare_steps, console_line
from benchmarks.training_step import TrainingStep

NETWORK = Path(__file__).parents[2] / "qat/models/resnet_cifar.py"


def resnet20() -> nn.Module:
    """Build the ResNet-20 of this project."""
    spec = importlib.util.spec_from_file_location("resnet_cifar", NETWORK)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ResNetCifar(20)


def measure(name: str, batch: int, rounds: int, modes: list[str], out: Path, device: str = "cpu") -> None:
    """Write settings, versions, and for each mode its steps or the error. The file is updated after each mode."""
    library = load_peer(name)
    packages = [*library.PACKAGES, "torch"]
    measurement: dict[str, Any] = {
        "settings": library.SETTINGS,
        "versions": {p: metadata.version(p) for p in dict.fromkeys(packages)},
        "batch": batch,
    }
    torch.manual_seed(0)
    x, y = torch.randn(batch, 3, 32, 32).to(device), torch.randint(0, 10, (batch,)).to(device)
    network = resnet20().to(device).train()
    for mode in modes:
        try:
            prepared = library.prepare(copy.deepcopy(network), x)
            if mode == "eager":
                measurement["parameters"] = sum(p.numel() for p in prepared.parameters() if p.requires_grad)
            prepared = prepared.to(device)
            for module in prepared.modules():  # exported graphs refuse .train()
                module.training = True
            steps = {"float": TrainingStep(copy.deepcopy(network), x, y), name: TrainingStep(prepared, x, y)}
            measurement[mode] = {"steps": compare_steps(steps, rounds, compiled=mode == "compiled")}
            print(f"{name}, {mode}\n{console_line(name, measurement[mode]['steps'][name])}", flush=True)
        except Exception as error:
            measurement[mode] = {"error": failure_line(error)}
            print(f"{name}, {mode}: {measurement[mode]['error']}", flush=True)
        out.write_text(json.dumps(measurement))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--modes", nargs="+", required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    measure(options.name, options.batch, options.rounds, options.modes, options.out, options.device)


if __name__ == "__main__":
    main()
