from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qat.experiment.distillation import Distillation
from qat.experiment.image_classifier import ImageClassifier
from qat.experiment.learning_rate import warmup_cosine
from tests.training.user_modules import CLASSES, LIGHTNING, Data, Net, trainer

pytestmark = LIGHTNING

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


def test_it_learns_and_logs_fractions(tmp_path: Path) -> None:
    module = ImageClassifier(Net(), CLASSES, SGD, warmup_cosine)
    fitting = trainer(tmp_path, epochs=8)
    fitting.fit(module, datamodule=Data())
    assert {"train/loss", "val/top1", "val/loss"} <= fitting.callback_metrics.keys()
    logged = fitting.test(module, datamodule=Data(), verbose=False)[0]
    assert logged.keys() == {"test/loss", "test/top1", "test/calibration_error"}
    assert logged["test/top1"] > 0.7
    assert 0 <= logged["test/calibration_error"] < 1


def test_top5_is_logged_where_there_are_more_classes() -> None:
    assert "top5" in ImageClassifier(nn.Identity(), 6, SGD).test_metrics
    assert "top5" not in ImageClassifier(nn.Identity(), 5, SGD).test_metrics


def test_top1_is_the_argmax_over_all_images(tmp_path: Path) -> None:
    module, data = ImageClassifier(Net(), CLASSES, SGD), Data()
    logged = trainer(tmp_path).test(module, datamodule=data, verbose=False)[0]
    images, labels = data.test.tensors
    with torch.no_grad():
        assert logged["test/top1"] == pytest.approx(float((module.eval()(images).argmax(1) == labels).float().mean()))


def test_the_schedule_moves_once_a_step_over_the_whole_fit(tmp_path: Path) -> None:
    lengths = []

    def schedule(optimizer: torch.optim.Optimizer, steps: int) -> torch.optim.lr_scheduler.LRScheduler:
        lengths.append(steps)
        return warmup_cosine(optimizer, steps)

    fitting = trainer(tmp_path, epochs=3)
    fitting.fit(ImageClassifier(Net(), CLASSES, SGD, schedule), datamodule=Data())
    assert lengths == [12]
    assert fitting.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0)


def test_a_teacher_is_neither_saved_nor_trained(tmp_path: Path) -> None:
    teacher = Net()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    distillation = Distillation(teacher, 0.5)
    module = ImageClassifier(Net(), CLASSES, SGD, distillation=distillation)
    trainer(tmp_path).fit(module, datamodule=Data())
    assert not [name for name in module.state_dict() if "teacher" in name]
    after: dict[str, Tensor] = distillation.teacher.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_impossible_label_smoothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=1.0 is not in \[0, 1\)"):
        ImageClassifier(nn.Identity(), 3, SGD, label_smoothing=1.0)
