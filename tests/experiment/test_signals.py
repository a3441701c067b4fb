"""Signals end a run at a step boundary, and with the status that a shell expects."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from qat.experiment.checkpoint_on_signal import CheckpointOnSignal
from qat.experiment.signals import Interrupted, SignalHandler, command_line, continuing_command, what_is_kept
from qat.training.callbacks import QuantizationAwareTraining
from qat.training.checkpoint.latest import step_of
from tests.training.user_modules import LIGHTNING, Classifier, Data, trainer

pytestmark = LIGHTNING


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_program_at_once_or_when_the_step_is_done(number: signal.Signals, status: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=number.name) as ended, SignalHandler():
        os.kill(os.getpid(), number)
    assert ended.value.status == status
    with SignalHandler() as handler:
        handler.waits = True
        os.kill(os.getpid(), number)
        assert handler.received == number
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


class KillAfter(L.Callback):
    """Sends a signal to this process in the middle of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_fit_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)

    def on_before_zero_grad(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(folder: Path, *callbacks: L.Callback, **options: Any) -> dict[str, torch.Tensor]:
    L.seed_everything(0, verbose=False)
    module = Classifier()
    qat = QuantizationAwareTraining("w8a8", quantizer_lr_ratio=0.01, calibration_images=32)
    fitting = trainer(folder, qat, *callbacks, epochs=2)
    fitting.fit(module, datamodule=Data(), **options)
    return module.state_dict()


@pytest.mark.parametrize(("at", "step"), [(2, 3), (8, 8)])
def test_a_fit_that_a_signal_ended_continues_to_the_bit(at: int, step: int, tmp_path: Path) -> None:
    """In the middle, and in the export, after the last of 8 steps."""
    expected = fit(tmp_path / "whole")
    checkpoint = tmp_path / "checkpoints" / "interrupted.ckpt"
    with pytest.raises(Interrupted), SignalHandler() as handler:
        fit(tmp_path, KillAfter(at), CheckpointOnSignal(handler, checkpoint.parent))
    assert step_of(checkpoint) == step
    assert f"interrupted.ckpt, of step {step}, is kept" in what_is_kept(tmp_path, "QAT")
    resumed = fit(tmp_path / "resumed", ckpt_path=checkpoint)
    assert all(torch.equal(value, resumed[name]) for name, value in expected.items())


def test_the_command_that_goes_on(tmp_path: Path) -> None:
    command = ["qat", "train", "recipe=digits_w4a4", "resume=older", f"hydra.run.dir={tmp_path}/b"]
    same = f"qat train recipe=digits_w4a4 hydra.run.dir={tmp_path}/b_resumed"
    assert continuing_command(command, tmp_path / "b") == f"{same} resume=older"
    (tmp_path / "b" / "checkpoints").mkdir(parents=True)
    (tmp_path / "b" / "checkpoints" / "last.ckpt").touch()
    assert continuing_command(command, tmp_path / "b") == f"{same} resume={tmp_path}/b"
    assert continuing_command(["qat", "train"], Path("x y=1")) == "qat train 'resume='\"'\"'x y=1'\"'\"''"


def test_the_command_starts_the_same_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["sub/train.py", "seed=1"])
    monkeypatch.setenv("PATH", "/nowhere")
    assert command_line("python train.py") == [sys.executable, "sub/train.py", "seed=1"]


def test_what_is_lost_is_said(tmp_path: Path) -> None:
    assert "the float network, calibration and PTQ begin anew" in what_is_kept(tmp_path, "the float training")
    assert "(the float network is kept)" in what_is_kept(tmp_path, "calibration and PTQ")


def test_a_signal_in_a_finalizer_is_not_lost() -> None:
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            sum(range(100))

    def run() -> None:
        dying = Dying()
        del dying
        time.sleep(20)

    with SignalHandler(), pytest.raises(Interrupted):
        run()
