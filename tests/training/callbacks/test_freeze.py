"""What comes to rest late in a fit, against values noted step by step."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qat.training.callbacks import Freeze, QuantizationAwareTraining
from qat.training.lightning.fit_progress import fraction_of_fit
from qat.training.optimization.parameter_groups import quantizer_parameters
from tests.training.user_modules import LIGHTNING, Classifier, Data, Manual, Net, images, trainer

pytestmark = LIGHTNING


def qat() -> QuantizationAwareTraining:
    return QuantizationAwareTraining("w4a4", quantizer_lr_ratio=0.01, batches=[images(32).tensors[0]])


class Steps(L.Callback):
    """Scales, statistics and the first weight after each batch, and how far the fit was when it began."""

    def __init__(self) -> None:
        self.progress: list[float] = []
        self.scales: list[Tensor] = []
        self.statistics: list[Tensor] = []
        self.weights: list[Tensor] = []
        self.norms: list[float] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self.progress.append(fraction_of_fit(trainer, batch_idx))

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        def all_of(values: Any) -> Tensor:
            return torch.cat([v.detach().flatten().clone() for v in values])

        self.scales.append(all_of(quantizer_parameters(module).values()))
        self.statistics.append(all_of(v for n, v in module.named_buffers() if "running" in n))
        self.weights.append(module.net.bn1.weight.detach().clone())
        self.norms.append(float(all_of(p.grad for p in module.parameters() if p.grad is not None).norm()))


def moves(values: list[Tensor]) -> list[bool]:
    """Whether each batch but the first changed them."""
    return [not torch.equal(a, b) for a, b in pairwise(values)]


class Waking(Classifier):
    """Calls train() itself, as many do at the start of an epoch."""

    def on_train_epoch_start(self) -> None:
        self.train()


@pytest.mark.parametrize("kind", [Classifier, Waking, Manual])
@pytest.mark.parametrize("length", [{"epochs": 3}, {"epochs": -1, "max_steps": 12}], ids=["epochs", "steps"])
def test_statistics_and_scales_rest_from_their_share_of_the_fit_on(
    kind: type[Classifier], length: dict[str, Any], tmp_path: Path
) -> None:
    steps = Steps()
    if kind is Manual and "max_steps" in length:  # Lightning counts the steps of both optimizers
        length = {**length, "max_steps": 24}
    fitting = trainer(tmp_path, Freeze(batch_norm=0.5, scales=0.75), steps, qat(), val_check_interval=2, **length)
    model = kind()
    fitting.fit(model, datamodule=Data())
    assert steps.progress == pytest.approx([i / 12 for i in range(12)])
    assert moves(steps.statistics) == [True] * 5 + [False] * 6
    assert moves(steps.scales) == [True] * 8 + [False] * 3
    assert moves(steps.weights) == [True] * 11
    assert all(module.training for module in model.modules() if isinstance(module, nn.BatchNorm2d))  # as they were


def test_a_batch_is_normalised_with_the_running_statistics(tmp_path: Path) -> None:
    class Noting(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            norm = self.net.bn1
            norm.register_forward_hook(lambda _, given, found: self.seen.append((given[0], found)), always_call=False)
            return super().training_step(batch, batch_idx)

    model = Noting()
    model.seen = []  # type: ignore[assignment]
    fitting = trainer(tmp_path, qat(), Freeze(batch_norm=0.0), max_steps=1)
    fitting.fit(model, DataLoader(images(32), 32))
    (given, found), norm = model.seen[0], Net().bn1
    by_hand = (given - norm.running_mean[:, None, None]) / (norm.running_var[:, None, None] + norm.eps).sqrt()
    torch.testing.assert_close(found, by_hand)


class Pulled(Classifier):
    """Momentum, and a weight decay that the callback has no say in."""

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.5
        return optimizer


def test_neither_momentum_nor_weight_decay_moves_a_frozen_scale(tmp_path: Path) -> None:
    steps = Steps()
    trainer(tmp_path, qat(), Freeze(scales=0.5), steps, epochs=2).fit(Pulled(), datamodule=Data())
    assert moves(steps.scales) == [True] * 3 + [False] * 4


def test_frozen_scales_do_not_count_in_a_clipped_norm(tmp_path: Path) -> None:
    """All of the norm is the weights'."""
    steps = Steps()
    fitting = trainer(tmp_path, qat(), Freeze(scales=0.5), steps, epochs=2, gradient_clip_val=1e-3)
    fitting.fit(Classifier(), datamodule=Data())
    assert steps.norms == pytest.approx([1e-3] * 8, rel=1e-3)


def test_without_shares_nothing_rests(tmp_path: Path) -> None:
    steps = Steps()
    trainer(tmp_path, qat(), Freeze(), steps, epochs=2).fit(Classifier(), datamodule=Data())
    assert moves(steps.scales) == moves(steps.statistics) == [True] * 7


@pytest.mark.parametrize("share", [1.5, -0.1, True, "late"])
def test_what_is_no_share_is_refused(share: Any) -> None:
    with pytest.raises(
        ValueError, match=rf"^scales={share!r} is not a valid share of the fit: write a number from 0 to 1"
    ):
        Freeze(scales=share)


@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have")
def test_a_fit_without_an_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^Freeze needs the length of the fit: write L.Trainer\(max_epochs="):
        trainer(tmp_path, qat(), Freeze(scales=0.5), epochs=-1).fit(Classifier(), datamodule=Data())


def test_scales_under_lbfgs_are_refused(tmp_path: Path) -> None:
    class Remembering(Classifier):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters())

    with pytest.raises(ValueError, match="LBFGS moves scales that have no gradient: write Freeze"):
        trainer(tmp_path, qat(), Freeze(scales=0.5)).fit(Remembering(), datamodule=Data())


def test_alone_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Freeze needs QuantizationAwareTraining beside it"):
        trainer(tmp_path, Freeze(scales=0.5)).fit(Classifier(), datamodule=Data())
