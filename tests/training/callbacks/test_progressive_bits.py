"""From many bits to few: which bits are in force when, what is kept, and what can never be exported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from torch import Tensor

import qat
from qat.training.callbacks import ProgressiveBits, QuantizationAwareTraining, Report
from qat.training.comparison.best_model import best_model
from qat.transform import FLOAT, bits_in_force, load_policy, prepare, quantizers
from tests.training.importable_modules import WithHyperparameters
from tests.training.user_modules import LIGHTNING, Classifier, Data, images, trainer

pytestmark = LIGHTNING

BATCH = images(32).tensors[0]
POLICY = load_policy("w2a2").with_parts("LSQ", "MinMax")


def callback(policy: Any = POLICY, **options: Any) -> QuantizationAwareTraining:
    return QuantizationAwareTraining(policy, batches=[BATCH], quantizer_lr_ratio=0.01, **options)


class Bits(L.Callback):
    """Those in force in each batch."""

    def __init__(self) -> None:
        self.seen: list[int | None] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.seen.append(bits_in_force(module))


class Worse(Classifier):
    """Every validation is worse than the one before, as those with fewer bits are."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/top1", 1.0 / (1 + self.global_step))


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        ([8, 4, 2], [8] * 4 + [4] * 4 + [None] * 4),
        ({0.0: FLOAT, 0.25: 8, 0.5: 2}, [FLOAT] * 3 + [8] * 3 + [None] * 6),
        ([2], [None] * 12),
        (None, [None] * 12),
    ],
)
@pytest.mark.parametrize("length", [{"epochs": 3}, {"epochs": -1, "max_steps": 12}], ids=["epochs", "steps"])
def test_stages_are_shares_of_the_fit(stages: Any, expected: Any, length: dict[str, Any], tmp_path: Path) -> None:
    bits = Bits()
    model = Classifier()
    trainer(tmp_path, ProgressiveBits(stages), callback(), bits, **length).fit(model, datamodule=Data())
    assert bits.seen == expected
    assert {n: q.spec for n, q in quantizers(model.net).items()} == {
        n: q.spec for n, q in quantizers(prepare(Classifier().net, POLICY)).items()
    }


class AtBoundary(L.Callback):
    """Before the first batch with the policy's bits, and after it has begun."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if bits_in_force(module) is None and not hasattr(self, "scales"):
            self.weights = {n: p.detach().clone() for n, p in module.net.named_parameters() if "quantizer" not in n}
            self.buffers = {n: b.clone() for n, b in module.net.named_buffers() if "running" in n}
            self.scales = {n: q.qparams().scale.clone() for n, q in quantizers(module.net).items()}
            optimizer: Any = trainer.optimizers[0]
            narrow = [q.scale for q in quantizers(module).values() if q.policy_grid.bits == 2]
            self.moments = [optimizer.state[scale] for scale in narrow if scale in optimizer.state]


def test_a_stage_begins_with_the_weights_before_and_calibrated_scales(tmp_path: Path) -> None:
    """Against a network that gets these weights and is calibrated with the policy, outside of any fit."""
    boundary = AtBoundary()
    trainer(tmp_path, callback(), ProgressiveBits([8, 2]), boundary, epochs=2).fit(Classifier(), datamodule=Data())
    fresh = Classifier().net
    fresh.load_state_dict({**boundary.weights, **boundary.buffers}, strict=False)
    reference = prepare(fresh, POLICY)
    qat.calibrate(reference, [BATCH])
    expected = {n: q.qparams().scale for n, q in quantizers(reference).items()}
    narrow = [n for n, q in quantizers(reference).items() if q.spec.grid.bits == 2]
    assert len(narrow) > 1
    for name in narrow:
        assert torch.equal(boundary.scales[name], expected[name]), name
    assert boundary.moments == []


def kept(path: Path) -> int | None:
    bits: int | None = torch.load(path, weights_only=True)["qat"]["bits"]
    return bits


@pytest.mark.parametrize(
    ("options", "step"), [({}, 10), ({"every_n_train_steps": 1}, 10), ({"every_n_train_steps": 3}, 12)], ids=str
)
def test_the_best_checkpoint_is_one_of_the_last_stage(options: dict[str, Any], step: int, tmp_path: Path) -> None:
    """Though every one before had a better score; also where the last score is one of an earlier stage."""
    best = ModelCheckpoint(tmp_path, "best", monitor="val/top1", mode="max", save_last=True, **options)
    fitting = trainer(
        tmp_path,
        best,
        callback(),
        ProgressiveBits([8, 4, 2]),
        epochs=3,
        enable_checkpointing=True,
        val_check_interval=2,
    )
    fitting.fit(Worse(), datamodule=Data())
    assert kept(Path(best.best_model_path)) is None
    assert best.best_model_score is not None
    assert float(best.best_model_score) == pytest.approx(1 / (1 + step))  # the first one that is saved
    assert best.save_top_k == 1


def test_before_it_those_that_resume_are_written_and_say_their_bits(tmp_path: Path) -> None:
    newest = ModelCheckpoint(tmp_path, "step_{step}", monitor="step", mode="max", save_top_k=-1, every_n_train_steps=1)
    best = ModelCheckpoint(tmp_path, "best", monitor="val/top1", mode="max")
    fitting = trainer(
        tmp_path, best, newest, callback(), ProgressiveBits([8, 4, 2]), epochs=3, enable_checkpointing=True
    )
    fitting.fit(Worse(), datamodule=Data())
    found = [kept(path) for path in sorted(tmp_path.glob("step_*.ckpt"), key=lambda p: p.stat().st_mtime_ns)]
    assert found == [8] * 4 + [4] * 4 + [None] * 4


def test_the_newest_of_an_earlier_stage_is_not_what_the_fit_ends_with(tmp_path: Path) -> None:
    newest = ModelCheckpoint(tmp_path, "newest", every_n_train_steps=5)
    model = Classifier()
    fitting = trainer(
        tmp_path, newest, callback(), ProgressiveBits({0.0: 8, 0.7: 2}), epochs=2, enable_checkpointing=True
    )
    fitting.fit(model, datamodule=Data())
    assert kept(tmp_path / "newest.ckpt") == 8
    found = best_model(fitting, model.net, "net", staged=True)
    assert found.epoch == 0
    assert all(torch.equal(value, found.network.state_dict()[n]) for n, value in model.net.state_dict().items())
    newest.best_model_path = str(tmp_path / "newest.ckpt")  # a callback of somebody's own that keeps it
    assert best_model(fitting, model.net, "net", staged=True).epoch == 0


class Stopping(L.Callback):
    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        trainer.should_stop = True


def test_a_fit_that_ends_too_early_exports_nothing(tmp_path: Path) -> None:
    report = Report(tmp_path)
    fitting = trainer(tmp_path, callback(), ProgressiveBits([8, 2]), Stopping(), report, epochs=4)
    with pytest.raises(
        RuntimeError, match=r"^the fit ended at 8 bits, before the last stage of ProgressiveBits: resume it"
    ):
        fitting.fit(Classifier(), datamodule=Data())


def test_the_network_before_the_first_step_is_the_policys(tmp_path: Path) -> None:
    report = Report(tmp_path)
    trainer(tmp_path, callback(), ProgressiveBits([8, 2]), report, epochs=2).fit(Classifier(), datamodule=Data())
    assert report.step0 is not None
    reference = prepare(Classifier().net, POLICY)
    assert {n: q.spec for n, q in quantizers(report.step0).items()} == {
        n: q.spec for n, q in quantizers(reference).items()
    }


def test_early_stopping_counts_anew_in_each_stage(tmp_path: Path) -> None:
    stopping = EarlyStopping("val/top1", mode="max", patience=2)
    fitting = trainer(tmp_path, callback(), ProgressiveBits([8, 4, 2]), stopping, epochs=6)
    fitting.fit(Worse(), datamodule=Data())
    assert fitting.current_epoch == 6
    assert stopping.wait_count == 1


def test_an_average_follows(tmp_path: Path) -> None:
    average = EMAWeightAveraging(decay=0.5)
    bits = Bits()
    fitting = trainer(tmp_path, average, callback(), ProgressiveBits([FLOAT, 8, 2]), bits, epochs=3)
    fitting.fit(Classifier(), datamodule=Data())
    assert bits.seen == [FLOAT] * 4 + [8] * 4 + [None] * 4
    assert bits_in_force(average._average_model) is None


def test_a_checkpoint_of_an_earlier_stage_is_the_network_of_that_stage(tmp_path: Path) -> None:
    def outputs(network: Any) -> Tensor:
        with torch.no_grad():
            found: Tensor = network.eval()(BATCH)
        return found

    class At8(L.Callback):
        def on_train_batch_end(
            self, trainer: L.Trainer, module: Any, batch: Any, outputs_: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "at8.ckpt")
                self.outputs = outputs(module)
                module.train()

    at8 = At8()
    trainer(tmp_path, callback(), ProgressiveBits([8, 2]), at8, epochs=2).fit(WithHyperparameters(), datamodule=Data())
    with pytest.warns(UserWarning, match="at8.ckpt was written at 8 bits, on the way to fewer, and so is the network"):
        loaded = qat.load_checkpoint(tmp_path / "at8.ckpt", WithHyperparameters)
    assert bits_in_force(loaded) == 8
    assert torch.equal(outputs(loaded), at8.outputs)
    tested = WithHyperparameters()
    testing = trainer(tmp_path, callback(), ProgressiveBits([8, 2]))
    testing.test(tested, datamodule=Data(), ckpt_path=tmp_path / "at8.ckpt", verbose=False, weights_only=True)
    assert torch.equal(outputs(tested), at8.outputs)
    with pytest.raises(
        ValueError, match=r"^the checkpoint was written at 8 bits, on the way to fewer: put the Progressive"
    ):
        trainer(tmp_path, callback(), epochs=2).fit(
            WithHyperparameters(), datamodule=Data(), ckpt_path=tmp_path / "at8.ckpt", weights_only=True
        )
    with pytest.raises(
        ValueError, match=r"^the checkpoint was trained with the stages \{0.0: 8, 0.5: 2\}, this run has"
    ):
        trainer(tmp_path, callback(), ProgressiveBits([8, 3, 2]), epochs=2).fit(
            WithHyperparameters(), datamodule=Data(), ckpt_path=tmp_path / "at8.ckpt", weights_only=True
        )


# Refused -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ("8,4", r"^stages='8,4' is not a list of bits: write \[8, 4, 2\]"),
        ([], r"^stages=\[\] is not a list of bits"),
        ([8, 9], "^stages have 9 bits: write whole numbers from 2 to 8, or 32 for float"),
        ([8, 4.0], "^stages have 4.0 bits"),
        ([4, 4, 2], r"^stages have \[4, 4, 2\] bits: write fewer in each"),
        ({0.1: 8, 0.5: 2}, r"^stages=.* begin at \[0.1, 0.5\]: write shares of the fit, rising from 0.0"),
        ({0.0: 8, 5: 2}, r"^stages=.* begin at \[0.0, 5\]"),
        ({0.0: 8, 1.0: 2}, r"^stages=.* begin at \[0.0, 1.0\]"),
    ],
)
def test_impossible_stages_are_refused(stages: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProgressiveBits(stages)


@pytest.mark.parametrize(
    ("policy", "stages", "message"),
    [
        (POLICY, [8, 4], r"^the stages end with 4 bits, the policy's fewest are 2: write .* such as \[8, 4, 2\]"),
        ("w4a8", [8, 2], r"^the stages end with 2 bits, the policy's fewest are 4: write .* such as \[8, 4\]"),
        (POLICY, [8, 7, 6, 5, 4, 3, 2], "^a fit of 4 steps is too short for the stages"),
    ],
)
def test_stages_that_do_not_fit_are_refused_before_the_first_step(
    policy: Any, stages: Any, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, ProgressiveBits(stages), callback(policy)).fit(Classifier(), datamodule=Data())


def test_where_nothing_can_change_it_is_refused(tmp_path: Path) -> None:
    rules = {"preset": "w2a2", "weight": {"quantizer": "Ternary"}, "first_last_bits": None, "residual_bits": None}
    rules["rules"] = {"all": {"match": "*", "weight": {"bits": 2}, "activation": None}}
    with pytest.raises(ValueError, match=r"^no quantizer can have other bits than the policy says"):
        trainer(tmp_path, ProgressiveBits([8, 2]), callback(load_policy(rules))).fit(Classifier(), datamodule=Data())
