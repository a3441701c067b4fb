"""Validation on codes: what is measured is what `qat.convert` computes, and training does not notice."""

from pathlib import Path

import lightning as L
import pytest
import torch
from torch import Tensor, nn

import qat
from qat.training.lightning.integer_evaluation import IntegerEvaluation
from tests.training.user_modules import LIGHTNING, Classifier, Data, ModuleAsNetwork, images, trainer

pytestmark = LIGHTNING


class Watch(L.Callback):
    """The network's outputs in validation, and those of its integer model and of itself at that moment."""

    def __init__(self, callback: qat.callbacks.QuantizationAwareTraining) -> None:
        self.callback, self.seen = callback, list[tuple[Tensor, Tensor, Tensor]]()

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        network = self.callback.network_of(pl_module)
        x = images(8).tensors[0]
        with torch.no_grad():
            found = network(x)
            forward = vars(network).pop("forward", None)
            fake, codes = network(x), qat.convert(network)(x)
            if forward is not None:
                vars(network)["forward"] = forward
        self.seen.append((found, codes, fake))


def callback(**options: bool) -> qat.callbacks.QuantizationAwareTraining:
    return qat.callbacks.QuantizationAwareTraining("w3a3", quantizer_lr_ratio=0.01, **options)


@pytest.mark.parametrize("kind", [Classifier, ModuleAsNetwork])
def test_validation_computes_the_integer_model_and_training_stays_the_same(
    kind: type[Classifier], tmp_path: Path
) -> None:
    weights = {}
    for integers in (False, True):
        torch.manual_seed(0)
        model, quantized = kind(), callback(validate_integers=integers)
        watch = Watch(quantized)
        trainer(tmp_path / str(integers), quantized, watch, epochs=2).fit(model, datamodule=Data())
        for found, codes, fake in watch.seen:
            assert torch.equal(found, codes if integers else fake)
        assert any(not torch.equal(codes, fake) for _, codes, fake in watch.seen)
        assert "forward" not in vars(quantized.network_of(model))
        weights[integers] = model.state_dict()
    assert all(torch.equal(weights[False][name], weights[True][name]) for name in weights[False])


def test_what_changes_weights_past_their_versions_is_validated(tmp_path: Path) -> None:
    """Averages of weights are swapped in through `data`, of which torch counts no version."""
    model, quantized = Classifier(), callback(validate_integers=True)
    fitting = trainer(tmp_path, quantized, max_steps=1)
    fitting.fit(model, datamodule=Data())
    (before,) = fitting.validate(model, datamodule=Data(), verbose=False)
    model.net.head.weight.data.copy_(-model.net.head.weight)
    model.net.head.bias.data.copy_(torch.tensor([50.0, 0.0, 0.0, 0.0]))
    (after,) = fitting.validate(model, datamodule=Data(), verbose=False)
    x, y = Data().val.tensors
    assert after["val/top1"] == pytest.approx((qat.convert(model.net)(x).argmax(1) == y).float().mean().item())
    assert after != before


def test_the_integer_model_is_made_once_for_each_state_of_the_network() -> None:
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(8, 4)
    prepared = qat.prepare(network, "w4a4", x).eval()
    qat.calibrate(prepared, [x])
    evaluation = IntegerEvaluation()
    with evaluation.on(prepared):
        for _ in range(3):
            assert torch.equal(prepared(x), qat_converted(prepared)(x))
        assert evaluation.conversions == 1
        with torch.no_grad():
            network_weight = prepared.get_parameter("0.weight")
            network_weight.mul_(2)
        assert torch.equal(prepared(x), qat_converted(prepared)(x))
    assert evaluation.conversions == 2
    assert prepared(x).requires_grad


def qat_converted(prepared: nn.Module) -> nn.Module:
    """The integer model of a network that evaluates on codes just now."""
    forward = vars(prepared).pop("forward")
    try:
        return qat.convert(prepared)
    finally:
        vars(prepared)["forward"] = forward


def test_a_loss_in_forward_is_validated_on_codes_too() -> None:
    from tests.capture.test_labels import BATCH, WithLoss

    torch.manual_seed(0)
    prepared = qat.prepare(WithLoss().eval(), "w4a4", BATCH)
    qat.calibrate(prepared, [BATCH])
    codes = qat.convert(prepared)(BATCH["ids"])["logits"]
    with IntegerEvaluation().on(prepared):
        found, alone = prepared(**BATCH), prepared(ids=BATCH["ids"])
    assert torch.equal(found["logits"], codes)
    assert torch.equal(alone["logits"], codes)
    expected = torch.nn.functional.cross_entropy(codes[:, :-1].reshape(-1, 5), BATCH["labels"][:, 1:].reshape(-1))
    torch.testing.assert_close(found["loss"], expected)


def test_an_option_that_is_no_flag_is_refused() -> None:
    with pytest.raises(ValueError, match="validate_integers='yes' is not possible: write true or false"):
        qat.callbacks.QuantizationAwareTraining("w4a4", validate_integers="yes")  # type: ignore[arg-type]
