"""Learning rates that a fit survives, with the factor of LSQ's scale gradient as its paper has it, and limited to 1 / qmax^2.

Two small networks are trained in float once, on scikit-learn's digits, and go on from there at constant learning rates: in
float, and quantized. Five minutes on one thread of a CPU.

python -m benchmarks.scale_factor --threads 1
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.oscillation import fit, top1
from benchmarks.record import RESULTS, write
from qat.callbacks import QuantizationAwareTraining
from qat.data import digits
from qat.models import ResNetCifar
from qat.quantizers import lsq
from qat.training.recipe.datamodule import ImageDataModule
from qat.training.recipe.module import ImageClassifier

LEARNING_RATES = (0.1, 0.03, 0.01)
POLICIES = ("w8a8", "w2a2")
PAPER, LIMITED = "1 / sqrt(N qmax), the paper's", "at most 1 / qmax^2"


class Plain(nn.Module):
    """Three convolutions of 16, 32 and 32 channels, the last one beside a shortcut: (N, 1, H, W) -> (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.conv2, self.bn2 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(32)
        self.conv3, self.bn3 = nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        x = F.relu(x + self.bn3(self.conv3(x)))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "three convolutions": Plain,
    "ResNet-8": lambda: ResNetCifar(8, in_channels=1),
}


@contextmanager
def of_the_paper() -> Iterator[None]:
    """Inside, the factor is 1 / sqrt(N * qmax)."""
    limited = lsq.lsq_factor
    lsq.lsq_factor = lambda sharing, qmax, is_weight: float(sharing * qmax) ** -0.5
    try:
        yield
    finally:
        lsq.lsq_factor = limited


def trained(
    network: nn.Module, data: ImageDataModule, lr: float, epochs: int, policy: str | None = None, seed: int = 0
) -> nn.Module:
    """A copy of the network after so many epochs more: SGD with momentum, neither schedule nor decay."""
    L.seed_everything(seed, verbose=False)
    data = ImageDataModule(data.data, data.batch_size, seed=seed)
    network = copy.deepcopy(network)
    module = ImageClassifier(network, data.data.num_classes, partial(torch.optim.SGD, lr=lr, momentum=0.9))
    quantized = [] if policy is None else [QuantizationAwareTraining(policy, batches=data.calibration_batches(500))]
    fit(module, data, epochs, *quantized)
    return module.network


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--float-epochs", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS / "scale_factor/cpu.json")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", ".*has fallen to its floor.*")  # what is measured
    data = digits()
    batches = ImageDataModule(data, 64)
    rows: list[dict[str, Any]] = []
    for name, make in NETWORKS.items():
        L.seed_everything(0, verbose=False)
        network = trained(make(), batches, 0.1, options.float_epochs)
        for policy, factor in ((None, ""), *product(POLICIES, (PAPER, LIMITED))):
            cells: dict[str, list[float]] = {}
            rows.append({"network": name, "policy": policy or "float", "factor": factor, "top1": cells})
            for lr in LEARNING_RATES:
                with of_the_paper() if factor == PAPER else nullcontext():
                    after = [trained(network, batches, lr, options.epochs, policy, seed) for seed in options.seeds]
                cells[str(lr)] = [top1(one, batches) for one in after]
                print(name, policy or "float", factor, lr, [f"{100 * v:.1f}" for v in cells[str(lr)]], flush=True)
                about = {"data": data.label, "test_images": len(data.test), "epochs": options.epochs}
                write(options.out, {**about, "rows": rows})


if __name__ == "__main__":
    main()
