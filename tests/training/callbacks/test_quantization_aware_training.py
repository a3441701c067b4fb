from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qat.quantizers import LSQ, Static
from qat.training.callbacks import QuantizationAwareTraining
from qat.training.lightning.inputs import first_tensor
from qat.transform import is_prepared, load_policy, quantizers
from qat.transform.load_checkpoint import load_checkpoint
from tests.training.user_modules import LIGHTNING, Classifier, Data, Manual, ModuleAsNetwork, images, trainer

pytestmark = LIGHTNING

STATIC = load_policy("w4a4").with_parts("Static", "MinMax")


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def scales(module: nn.Module) -> dict[str, Tensor]:
    return {name: q.qparams().scale.clone() for name, q in quantizers(module).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def qat(policy: Any = "w4a4", **options: Any) -> QuantizationAwareTraining:
    """Slow scales: these networks are untrained and tiny, and theirs would run away."""
    return QuantizationAwareTraining(policy, **{"quantizer_lr_ratio": 0.01, **options})


class AtStart(L.Callback):
    """The scales as the first step finds them."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.scales = scales(pl_module)


def never() -> Iterator[Tensor]:
    pytest.fail("data were observed")
    yield


@pytest.mark.parametrize("kind", [Classifier, ModuleAsNetwork, Manual])
def test_one_line_quantizes_calibrates_and_trains(kind: type[Classifier], tmp_path: Path) -> None:
    model, start = kind(), AtStart()
    names = set(model.state_dict())
    trainer(tmp_path, qat(), start, epochs=2).fit(model, datamodule=Data())
    found = quantizers(model)
    assert len(found) > 4
    assert all(isinstance(q, LSQ) and q.ready for q in found.values())
    assert names <= set(model.state_dict())
    assert not equal(scales(model), start.scales)


def test_a_module_that_is_itself_the_network_keeps_its_steps_and_gets_sites(tmp_path: Path) -> None:
    model = ModuleAsNetwork()
    callback = qat()
    trainer(tmp_path, callback).fit(model, datamodule=Data())
    assert callback.network_name == ""
    assert isinstance(model, ModuleAsNetwork)
    assert "sites" in dict(model.named_children())


def test_quantizers_get_their_own_group_before_the_scheduler_is_built(tmp_path: Path) -> None:
    model = Classifier(lr=0.1)
    fitting = trainer(tmp_path, qat(), epochs=2, limit_train_batches=1)
    fitting.fit(model, datamodule=Data())
    others, learned = fitting.optimizers[0].param_groups
    assert (others["weight_decay"], learned["weight_decay"]) == (1e-3, 0.0)
    assert (others["initial_lr"], learned["initial_lr"]) == (0.1, pytest.approx(0.001))
    assert (others["lr"], learned["lr"]) == (pytest.approx(0.025), pytest.approx(0.00025))  # halved twice
    own = {id(q.scale) for q in quantizers(model).values() if isinstance(q, LSQ)}
    assert {id(p) for p in learned["params"]} == own
    assert not own & {id(p) for p in others["params"]}
    assert "configure_optimizers" not in vars(model)


def test_several_optimizers_each_get_a_group(tmp_path: Path) -> None:
    model = Manual()
    fitting = trainer(tmp_path, qat())
    fitting.fit(model, datamodule=Data())
    rates = [[group["lr"] for group in optimizer.param_groups] for optimizer in fitting.optimizers]
    assert rates == [[0.02, pytest.approx(0.0002)], [0.01, pytest.approx(0.0001)]]


def test_nothing_is_observed_in_validation_test_or_the_sanity_check(tmp_path: Path) -> None:
    found = []
    for factor in (1.0, 1000.0):
        model, data = Classifier(lr=0.0), Data(val_factor=factor)
        fitting = trainer(tmp_path, qat(STATIC), epochs=2, num_sanity_val_steps=2)
        fitting.fit(model, datamodule=data)
        fitting.validate(model, datamodule=data, verbose=False)
        found.append(scales(model))
    assert equal(*found)
    assert max(float(s.max()) for s in found[0].values()) < 100


def test_calibration_uses_the_train_data_without_changing_what_the_fit_sees(tmp_path: Path) -> None:
    class Recorder(Classifier):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            self.seen = [*getattr(self, "seen", []), batch[0].clone()]
            return super().training_step(batch, batch_idx)

    seen = []
    for callbacks in ([], [qat()]):
        torch.manual_seed(7)
        model = Recorder()
        torch.manual_seed(7)
        trainer(tmp_path, *callbacks, epochs=2).fit(model, datamodule=Data())
        seen.append(torch.cat(model.seen))
    assert torch.equal(*seen)


def test_a_loader_with_its_own_generator_shuffles_as_if_nobody_had_looked(tmp_path: Path) -> None:
    orders = []
    for callbacks in ([], [qat()]):
        seen: list[Tensor] = []

        class Recorder(Classifier):
            def on_train_batch_start(self, batch: Any, batch_idx: int, seen: list[Tensor] = seen) -> None:
                seen.append(batch[1].clone())

        loader = DataLoader(images(128), 32, shuffle=True, generator=torch.Generator().manual_seed(3))
        trainer(tmp_path, *callbacks).fit(Recorder(), loader)
        orders.append(torch.cat(seen))
    assert torch.equal(*orders)


def test_calibration_images_are_not_augmented(tmp_path: Path) -> None:
    class Augmenting(Data):
        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert self.trainer is not None
            return [batch[0] + 1000.0, batch[1]] if self.trainer.training else batch

    model = Classifier()
    start = AtStart()
    trainer(tmp_path, qat(), start).fit(model, datamodule=Augmenting())
    assert max(float(s.max()) for s in start.scales.values()) < 10


def test_calibration_leaves_training_modes_alone(tmp_path: Path) -> None:
    class Frozen(Classifier):
        def on_train_start(self) -> None:
            self.modes = {name: m.training for name, m in self.named_modules()}

    model = Frozen()
    trainer(tmp_path, qat()).fit(model, datamodule=Data())
    assert all(model.modes[name] for name in ("net", "net.bn1", "net.bn2"))


class _Never:
    def __iter__(self) -> Iterator[Tensor]:
        return never()


def test_a_resumed_fit_is_not_recalibrated_and_ends_as_an_uninterrupted_one(tmp_path: Path) -> None:
    def fit(epochs: int, callback: QuantizationAwareTraining, **options: Any) -> tuple[L.Trainer, Classifier]:
        model = Classifier()
        loader = DataLoader(images(128), 32)
        fitting = trainer(tmp_path, callback, epochs=epochs)
        fitting.fit(model, loader, **options)
        return fitting, model

    _, whole = fit(2, qat())
    half, _ = fit(1, qat())
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed_trainer, resumed = fit(2, qat(batches=_Never()), ckpt_path=tmp_path / "half.ckpt", weights_only=True)
    assert resumed_trainer.global_step == 8
    assert equal(state(resumed), state(whole))


def test_a_checkpoint_is_tested_by_a_new_trainer(tmp_path: Path) -> None:
    model = Classifier()
    fitting = trainer(tmp_path, qat(), epochs=2)
    fitting.fit(model, datamodule=Data())
    fitting.save_checkpoint(tmp_path / "done.ckpt")
    expected = fitting.test(model, datamodule=Data(), verbose=False)
    fresh = Classifier()
    testing = trainer(tmp_path, qat())
    assert testing.test(fresh, datamodule=Data(), ckpt_path=tmp_path / "done.ckpt", verbose=False) == expected
    assert equal(scales(fresh), scales(model))


def test_another_policy_than_the_checkpoints_is_one_sentence(tmp_path: Path) -> None:
    fitting = trainer(tmp_path, qat())
    fitting.fit(Classifier(), datamodule=Data())
    fitting.save_checkpoint(tmp_path / "w4a4.ckpt")
    with pytest.raises(
        ValueError,
        match=r"^the checkpoint was trained with policy 'w4a4', this run asks for 'w2a4' "
        r"\(rules\.all\.weight\.bits is 4 there, 2 here\): use the same policy, or start from the float network\.$",
    ):
        trainer(tmp_path, qat("w2a4"), epochs=2).fit(Classifier(), datamodule=Data(), ckpt_path=tmp_path / "w4a4.ckpt")


def test_a_float_checkpoint_is_refused_with_what_to_do(tmp_path: Path) -> None:
    fitting = trainer(tmp_path)
    fitting.fit(Classifier(), datamodule=Data())
    fitting.save_checkpoint(tmp_path / "float.ckpt")
    with pytest.raises(ValueError, match="the checkpoint holds a network without quantizers: load it into"):
        trainer(tmp_path, qat(), epochs=2).fit(Classifier(), datamodule=Data(), ckpt_path=tmp_path / "float.ckpt")


def test_a_checkpoint_of_weights_alone_is_called_that(tmp_path: Path) -> None:
    model = Classifier()
    fitting = trainer(tmp_path, qat(), max_steps=1)
    fitting.fit(model, datamodule=Data())
    fitting.save_checkpoint(path := tmp_path / "weights.ckpt", weights_only=True)
    said = r"holds weights and scales, and not the policy that they belong to: write ModelCheckpoint\(save_weights_only=False\)"
    with pytest.raises(ValueError, match=f"^the checkpoint {said}"):
        fitting.test(model, datamodule=Data(), ckpt_path=path)
    with pytest.raises(ValueError, match=rf"^checkpoint .*weights\.ckpt {said}"):
        load_checkpoint(path, Classifier)


def test_a_network_that_was_prepared_otherwise_is_refused(tmp_path: Path) -> None:
    model = Classifier()
    trainer(tmp_path, qat()).fit(model, datamodule=Data())
    with pytest.raises(ValueError, match="the network is prepared with policy 'w4a4', this run asks for 'w8a8'"):
        trainer(tmp_path, qat("w8a8")).fit(model, datamodule=Data())


def test_a_scale_at_its_floor_is_named_once(tmp_path: Path) -> None:
    class Breaking(Classifier):
        def on_train_batch_end(self, *_: Any) -> None:
            with torch.no_grad():
                quantizers(self)["net.conv1.weight_quantizer"].scale.fill_(-1.0)  # type: ignore[operator, union-attr]

    fitting = trainer(tmp_path, qat(), epochs=2, limit_train_batches=1)
    message = (
        r"epoch 1: the learned scale of 'conv1.weight' has fallen to its floor \(4 of 4\): lower the learning rate"
    )
    with pytest.warns(UserWarning, match=message) as warned:
        fitting.fit(Breaking(lr=1e-6), DataLoader(images(64), 32))
    assert len([w for w in warned if "learned scale" in str(w.message)]) == 1


def test_a_training_step_that_goes_around_the_prepared_network_is_found_out(tmp_path: Path) -> None:
    class Around(ModuleAsNetwork):
        def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
            return self.head(self.conv(batch[0])[:, :, :2, :2].flatten(1)).sum()

    with pytest.raises(ValueError, match="the first training step of Around did not run the network that was prepared"):
        trainer(tmp_path, qat()).fit(Around(), datamodule=Data())


@pytest.mark.filterwarnings("ignore:Found .* in eval mode")  # Lightning's own words
def test_a_network_left_in_evaluation_mode_is_said(tmp_path: Path) -> None:
    model = Classifier()
    model.net.eval()
    with pytest.warns(UserWarning, match=r"the network is in evaluation mode, .* Call train\(\) on it before the fit"):
        trainer(tmp_path, qat(), limit_train_batches=1).fit(model, datamodule=Data())
    model = Classifier()
    next(m for m in model.net.modules() if isinstance(m, nn.BatchNorm2d)).eval()  # somebody meant it
    trainer(tmp_path, qat(), limit_train_batches=1).fit(model, datamodule=Data())


def test_scales_that_no_optimizer_updates_are_said(tmp_path: Path) -> None:
    class Early(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.collected = list(self.net.parameters())

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.collected, lr=0.01)

    with pytest.warns(
        UserWarning, match=r"\d+ learned scales are in no optimizer \(conv1.weight_quantizer.scale, ...\)"
    ):
        trainer(tmp_path, qat()).fit(Early(), datamodule=Data())


def test_a_users_own_instance_hook_survives(tmp_path: Path) -> None:
    model = Classifier()

    def configure() -> Any:
        return torch.optim.SGD(model.parameters(), lr=0.01)

    model.configure_optimizers = configure  # type: ignore[method-assign]
    trainer(tmp_path, qat()).fit(model, datamodule=Data())
    assert model.configure_optimizers is configure


def test_inputs_say_what_the_network_is_called_with(tmp_path: Path) -> None:
    class Dicts(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step((batch["pixels"], batch["label"]), batch_idx)

    def loader() -> DataLoader[Any]:
        return DataLoader([{"pixels": x, "label": y} for x, y in images(64)], 32)  # type: ignore[arg-type]

    for callback in (qat(STATIC), qat(STATIC, inputs=lambda batch: batch["pixels"])):
        model = Dicts()
        trainer(tmp_path, callback).fit(model, loader())
        assert all(isinstance(q, Static) and q.ready for q in quantizers(model).values())
    with pytest.raises(ValueError, match="a batch is a str: say what the network is called with"):
        first_tensor("cat")


def test_a_float_copy_from_before_is_kept_for_baselines(tmp_path: Path) -> None:
    model = Classifier()
    before = state(model.net)
    callback = qat()
    trainer(tmp_path, callback).fit(model, datamodule=Data())
    assert callback.float_network is not None
    assert not is_prepared(callback.float_network)
    assert equal(state(callback.float_network), before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "w9a8"}, "bits=9 is not a valid width"),
        ({"policy": "w4a4", "calibration_images": 0}, "calibration_images=0 calibrates nothing"),
        ({"policy": "w4a4", "quantizer_lr_ratio": -1.0}, "quantizer_lr_ratio=-1.0 is negative"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantizationAwareTraining(**options)


def test_batches_that_the_network_does_not_take_are_said(tmp_path: Path) -> None:
    """As the images of a GAN, whose generator takes noise."""
    with pytest.raises(
        ValueError, match=r"^Net cannot run on the batches that calibrate it \(.*\): say how a batch becomes"
    ):
        trainer(tmp_path, qat(inputs=lambda batch: batch[0][:, :, :1, :1].flatten(1))).fit(
            Classifier(), datamodule=Data()
        )
