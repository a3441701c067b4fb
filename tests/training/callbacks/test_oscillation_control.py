"""OscillationControl in fits of small networks, against formulas in numpy and double precision."""

import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import qat
from qat.granularity import PerChannel
from qat.grid import Grid
from qat.nn import as_quantized, is_quantized
from qat.quantizers import LSQ, APoT, Mode, Oscillations, Quantizer
from qat.report import read_results
from qat.spec import QuantSpec
from qat.training.callbacks import (
    ExportONNX,
    OscillationControl,
    ProgressiveBits,
    QuantizationAwareTraining,
    Report,
)
from qat.training.optimization.cosine_schedule import cosine_between
from qat.training.optimization.dampening import dampening_gradient
from qat.transform import FLOAT, bits_in_force
from tests.training.user_modules import LIGHTNING, Classifier, Data, Manual, ModuleAsNetwork, images, trainer

pytestmark = LIGHTNING


def callback(**options: Any) -> QuantizationAwareTraining:
    policy = options.pop("policy", qat.load_policy("w3a8", first_last_bits=None))
    return QuantizationAwareTraining(policy, **{"quantizer_lr_ratio": 0.001, **options})


def counted(module: nn.Module) -> dict[str, tuple[Tensor, Quantizer, Oscillations]]:
    layers = {name: as_quantized(m) for name, m in module.named_modules() if is_quantized(m)}
    return {n: (m.weight, m.weight_quantizer, m.weight_quantizer.oscillations) for n, m in layers.items()}  # type: ignore[union-attr, misc]


class Codes(L.Callback):
    """The codes of every weight before the first step and after each."""

    def __init__(self) -> None:
        self.seen: dict[str, list[np.ndarray]] = {}

    def note(self, module: L.LightningModule) -> None:
        for name, (weight, quantizer, _) in counted(module).items():
            self.seen.setdefault(name, []).append(quantizer.quantize(weight.detach()).numpy().astype(int))

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.note(module)

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        self.note(module)


def frequencies(codes: list[np.ndarray], momentum: float) -> np.ndarray:
    """Eq. 4."""
    frequency, direction = np.zeros(codes[0].shape), np.zeros(codes[0].shape)
    for before, after in pairwise(codes):
        change = np.sign(after - before)
        frequency = momentum * ((change != 0) & (change == -direction)) + (1 - momentum) * frequency
        direction = np.where(change != 0, change, direction)
    return frequency


@pytest.mark.parametrize(
    "kind",
    [lambda: Classifier(lr=0.5), lambda: ModuleAsNetwork(lr=0.5), Manual],
    ids=["child network", "the module itself", "manual optimization"],
)
def test_a_fit_is_counted_without_being_changed(kind: Callable[[], Classifier], tmp_path: Path) -> None:
    ends = []
    codes = Codes()
    for extra in ([], [OscillationControl(momentum=0.2), codes]):
        torch.manual_seed(1)
        model = kind()
        torch.manual_seed(1)
        trainer(tmp_path, *extra, callback(), epochs=3).fit(model, datamodule=Data())
        ends.append({n: v.clone() for n, v in model.state_dict().items() if "oscillations" not in n})
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    found = counted(model)
    for name, (_, _, state) in found.items():
        assert np.allclose(state.frequency.numpy(), frequencies(codes.seen[name], 0.2), atol=1e-6)
    assert sum(int((state.frequency > 0).sum()) for _, _, state in found.values()) > 5


def test_the_report_counts_weights(tmp_path: Path) -> None:
    control = OscillationControl(momentum=0.2, threshold=0.1, freezing=0.3)
    model = Classifier(lr=0.5)
    fitting = trainer(tmp_path, control, callback(), epochs=3)
    fitting.fit(model, datamodule=Data())
    assert control.report is not None
    assert [layer.layer for layer in control.report.layers] == ["conv1", "conv2", "head"]
    for layer, (weight, _, state) in zip(control.report.layers, counted(model).values(), strict=True):
        assert layer.weights == weight.numel()
        assert layer.oscillating == sum(
            f > 0.1 and not z for f, z in zip(state.frequency.flatten(), state.frozen.flatten(), strict=True)
        )
        assert layer.frozen == int(state.frozen.sum())
    assert control.report.oscillating > 0
    assert control.report.frozen > 0
    logged = {name: float(fitting.callback_metrics[f"train/{name}"]) for name in ("oscillating", "frozen")}
    assert logged == pytest.approx({"oscillating": control.report.oscillating, "frozen": control.report.frozen})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_counted_once_however_many_batches_it_takes(accumulate: int, tmp_path: Path) -> None:
    steps: list[int] = []

    class Counting(Oscillations):
        def step(self, codes: Tensor, momentum: float) -> None:
            steps.append(1)
            super().step(codes, momentum)

    class Counted(OscillationControl):
        def on_prepared(self, pl_module: nn.Module, network: nn.Module) -> None:
            super().on_prepared(pl_module, network)
            for _, _, state in counted(network).values():
                state.__class__ = Counting

    fitting = trainer(tmp_path, callback(), Counted(), epochs=2, accumulate_grad_batches=accumulate)
    fitting.fit(Classifier(), datamodule=Data())
    assert len(steps) == 3 * fitting.global_step == 3 * 8 // accumulate


def test_the_dampening_gradient_is_that_of_the_formula() -> None:
    quantizer = LSQ(QuantSpec(Grid(3, narrow=True), PerChannel()), (2, 40))
    quantizer.set_range(torch.tensor([-0.6, -1.5]), torch.tensor([0.6, 1.5]))
    weight = torch.randn(2, 40, generator=torch.Generator().manual_seed(0))
    scale = quantizer.qparams().scale.double().numpy()[:, None]

    def loss(w: np.ndarray) -> float:
        rounded = np.clip(np.rint(weight.double().numpy() / scale), -3, 3) * scale  # no gradient through it
        return float(((np.clip(w, -3 * scale, 3 * scale) - rounded) ** 2).sum())

    start, epsilon = weight.double().numpy(), 1e-6
    numeric = np.zeros_like(start)
    for place in np.ndindex(start.shape):
        shifted = np.zeros_like(start)
        shifted[place] = epsilon
        numeric[place] = (loss(start + shifted) - loss(start - shifted)) / (2 * epsilon)
    assert np.allclose(dampening_gradient(quantizer, weight).numpy(), numeric, atol=1e-5)
    assert (numeric == 0).any()  # beyond the grid
    assert np.abs(numeric).max() > 0.1


def test_beyond_the_outermost_level_of_a_codebook_nothing_is_dampened() -> None:
    quantizer = APoT(QuantSpec(Grid(4, narrow=True)), (5,))
    quantizer.set_range(torch.tensor([-10.0]), torch.tensor([10.0]))  # levels 0, 1, 2, 3, 4, 6, 8, 10 and below
    weight = torch.tensor([12.0, -15.0, 9.5, -4.75, 2.0])
    assert dampening_gradient(quantizer, weight).tolist() == [0.0, 0.0, -1.0, -1.5, 0.0]


class Explicit(Classifier):
    """The dampening loss, written into the step as the paper has it."""

    def __init__(self, dampening: float = 0.0) -> None:
        super().__init__(lr=0.05)
        self.dampening = dampening

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        for weight, quantizer, _ in counted(self).values() if self.dampening else ():
            scale = quantizer.qparams().scale.reshape(-1, *[1] * (weight.ndim - 1))
            rounded = (weight.detach() / scale).round().clamp(-3, 3) * scale
            loss = loss + self.dampening * (weight.clamp(-3 * scale, 3 * scale) - rounded).square().sum()
        return loss


@pytest.mark.parametrize("options", [{}, {"accumulate_grad_batches": 2}, {"gradient_clip_val": 0.05}])
def test_dampening_is_the_loss_added_in_the_step(options: dict[str, Any], tmp_path: Path) -> None:
    ends = []
    for model, dampening in ((Explicit(0.3), None), (Explicit(), 0.3), (Explicit(), None)):
        control = OscillationControl(dampening=dampening)
        trainer(tmp_path, callback(), control, epochs=1, **options).fit(model, DataLoader(images(128), 32))
        ends.append(model.net.conv2.weight.detach().clone())
    written, added, without = ends
    assert torch.allclose(written, added, atol=1e-6)
    assert (written - without).abs().max() > 1e-4


def test_frozen_weights_stay_on_their_code_through_momentum_and_a_moving_scale(tmp_path: Path) -> None:
    class Watching(Codes):
        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            for name, (weight, quantizer, state) in counted(module).items():
                codes = quantizer.quantize(weight.detach())
                assert torch.equal(codes[state.frozen], state.code.float()[state.frozen])
                scale = quantizer.qparams().scale.reshape(-1, *[1] * (weight.ndim - 1))
                assert torch.equal(weight[state.frozen], (state.code * scale)[state.frozen])
                self.seen.setdefault(name, []).append(
                    np.where(state.frozen, codes, np.nan).copy()  # type: ignore[call-overload]
                )
                self.scales.setdefault(name, []).append(scale.clone())

    watching = Watching()
    watching.scales = {}  # type: ignore[attr-defined]
    control = OscillationControl(freezing=(0.2, 0.05), momentum=0.2)
    model = Classifier(lr=0.5)
    qat_callback = callback()
    watching.on_train_start = lambda *_: None  # type: ignore[method-assign]
    trainer(tmp_path, qat_callback, control, watching, epochs=10).fit(model, datamodule=Data())
    frozen = 0
    for name, seen in watching.seen.items():
        for before, after in pairwise(seen):
            was = ~np.isnan(before)
            assert np.array_equal(before[was], after[was]), name
        frozen += int((~np.isnan(seen[-5])).sum())
        assert not torch.equal(watching.scales[name][-5], watching.scales[name][-1])  # type: ignore[attr-defined]
    assert frozen > 5


@pytest.mark.parametrize("first", [4, 8, FLOAT])
def test_each_width_of_progressive_bits_is_counted_from_its_start(first: int, tmp_path: Path) -> None:
    class Watching(L.Callback):
        def __init__(self) -> None:
            self.frozen: list[tuple[int | None, int]] = []

        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            total = 0
            for weight, quantizer, state in counted(module).values():
                total += int(state.frozen.sum())
                if quantizer.mode is Mode.QUANTIZE:
                    codes = quantizer.quantize(weight.detach())
                    assert torch.equal(codes[state.frozen], state.code.float()[state.frozen])
            self.frozen.append((bits_in_force(module), total))

    watching, policy = Watching(), qat.load_policy("w3a8", first_last_bits=None)
    batches = [next(iter(DataLoader(images(64), 64)))[0]]
    control = OscillationControl(freezing=0.02, momentum=0.3)
    stages = ProgressiveBits({0.0: first, 0.25: 3})
    model = Classifier(lr=0.5)
    trainer(tmp_path, callback(policy=policy, batches=batches), stages, control, watching, epochs=8).fit(model, Data())
    wide = [n for bits, n in watching.frozen if bits == first]
    narrow = [n for bits, n in watching.frozen if bits is None]
    assert (max(wide) > 0) == (first == 4), "more bits than max_bits, or float, are left alone"
    assert narrow[0] == 0
    assert narrow[-1] > 0 or first == FLOAT  # a network that has learned in float hardly moves any more


@pytest.mark.parametrize("kind", [Classifier, Manual], ids=["one step a batch", "two optimizers, two steps"])
def test_the_schedule_is_half_a_cosine_over_the_fit(kind: type[Classifier], tmp_path: Path) -> None:
    used: list[float] = []

    class Noting(Oscillations):
        def freeze(self, threshold: float, nearest_code: Callable[[Tensor], Tensor] = torch.round) -> None:
            used.append(threshold)

    class Noted(OscillationControl):
        def on_prepared(self, pl_module: nn.Module, network: nn.Module) -> None:
            super().on_prepared(pl_module, network)
            counted(network)["head"][2].__class__ = Noting

    trainer(tmp_path, callback(), Noted(freezing=[0.1, 0.01]), epochs=2).fit(kind(), datamodule=Data())
    expected = 0.01 + 0.09 * (1 + np.cos(np.pi * np.arange(1, 9) / 8)) / 2
    assert used == pytest.approx(expected.tolist())
    assert cosine_between(0.0, 0.1, 7.0) == pytest.approx(0.1)


def test_a_fit_without_freezing_releases(tmp_path: Path) -> None:
    model = Classifier(lr=0.1)
    for freezing in (0.01, None):
        control = OscillationControl(freezing=freezing, momentum=0.2)
        trainer(tmp_path, callback(), control, epochs=3).fit(model, datamodule=Data())
        assert control.report is not None
        assert (control.report.frozen > 0) == (freezing is not None)


def test_weights_of_many_bits_are_left_alone(tmp_path: Path) -> None:
    model = Classifier()
    trainer(tmp_path, callback(policy="w4a8"), OscillationControl()).fit(model, datamodule=Data())
    assert [name for name, (_, _, state) in counted(model).items() if state is not None] == ["net.conv2"]
    with pytest.raises(
        ValueError, match=r"max_bits=4\) finds no weight of so few bits; the fewest are 8: write max_bits=8"
    ):
        trainer(tmp_path, QuantizationAwareTraining("w8a8"), OscillationControl()).fit(Classifier(), datamodule=Data())


@pytest.mark.parametrize("control_first", [True, False])
def test_an_average_has_the_buffers_of_what_it_averages(control_first: bool, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    average = EMAWeightAveraging(decay=0.5)
    control = OscillationControl(freezing=0.1, momentum=0.2)
    order = [control, average, callback()] if control_first else [average, callback(), control]
    model = Classifier(lr=0.1)
    fitting = trainer(tmp_path, *order, epochs=3)
    fitting.fit(model, datamodule=Data())
    assert [type(c).__name__ for c in fitting.callbacks][:2] == ["QuantizationAwareTraining", "OscillationControl"]  # type: ignore[attr-defined]
    twin = average._average_model.module  # type: ignore[union-attr]
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert control.report is not None
    for layer, (_, _, state) in zip(control.report.layers, counted(twin).values(), strict=True):
        assert layer.frozen == int(state.frozen.sum())


def test_a_checkpoint_serves_with_and_without_the_callback(tmp_path: Path) -> None:
    model = Classifier(lr=0.1)
    fitting = trainer(tmp_path, callback(), OscillationControl(freezing=0.1, momentum=0.2), epochs=2)
    fitting.fit(model, datamodule=Data())
    path = tmp_path / "done.ckpt"
    fitting.save_checkpoint(path)
    expected = fitting.test(model, datamodule=Data(), verbose=False)
    for extra in ([], [OscillationControl()]):
        fresh = Classifier()
        testing = trainer(tmp_path, callback(), *extra)
        assert testing.test(fresh, datamodule=Data(), ckpt_path=path, verbose=False) == expected
    assert torch.equal(counted(fresh)["net.conv2"][2].frequency, counted(model)["net.conv2"][2].frequency)
    loaded = qat.load_checkpoint(path, Classifier())
    x = images(8).tensors[0]
    assert torch.equal(loaded(x), model.eval()(x))


def test_results_and_report_have_the_counts_and_frozen_codes_are_exported(tmp_path: Path) -> None:
    control = OscillationControl(freezing=0.1, momentum=0.2)
    report = Report(tmp_path)
    callbacks = [report, ExportONNX(tmp_path / "model.onnx"), control, callback()]
    trainer(tmp_path, *callbacks, epochs=2).fit(Classifier(lr=0.1), datamodule=Data())
    results = read_results(tmp_path / "results.json")
    assert results.oscillations == control.report
    assert results.oscillations is not None
    assert results.oscillations.frozen > 0
    assert results.verification is not None
    assert results.verification.exact
    assert "![Oscillating and frozen weights of each layer](oscillations.png)" in (tmp_path / "report.md").read_text()
    assert (tmp_path / "oscillations.png").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"momentum": 0.0}, "momentum=0.0 is not between 0 and 1: write 0.01"),
        ({"threshold": 1.5}, "threshold=1.5 is not a frequency between 0 and 1"),
        ({"dampening": -0.1}, "dampening=-0.1 is not possible: write a number, 0 or more, as 0.1, or"),
        (
            {"dampening": [0.0, math.inf]},
            r"dampening=\[0.0, inf\] is not possible: write a number, 0 or more, as 0.1, or",
        ),
        ({"freezing": "0.1"}, "freezing='0.1' is not possible: write a number, from 0 to 1, as 0.02, or"),
        ({"freezing": [0.1]}, r"freezing=\[0.1\] is not possible"),
        ({"freezing": [0.1, 0.05, 0.01]}, r"freezing=\[0.1, 0.05, 0.01\] is not possible"),
        ({"freezing": [1.1, 0.1]}, r"freezing=\[1.1, 0.1\] is not possible"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OscillationControl(**options)


def test_what_cannot_be_dampened_or_frozen_is_said_before_the_first_step(tmp_path: Path) -> None:
    policy = qat.load_policy("w3a8", first_last_bits=None).with_parts("LSQ", "MinMax")
    rules = {"all": {"match": "*", "weight": {"bits": 3, "quantizer": "DoReFa"}, "activation": {"bits": 8}}}
    bent = qat.load_policy({"preset": "w3a8", "first_last_bits": None, "rules": rules})
    for options in ({"dampening": 0.1}, {"freezing": 0.1}):
        with pytest.raises(ValueError, match="DoReFa, of layer 'conv1', may give a weight of scale \\* code another"):
            trainer(tmp_path, QuantizationAwareTraining(bent), OscillationControl(**options)).fit(
                Classifier(), datamodule=Data()
            )
    trainer(tmp_path, QuantizationAwareTraining(bent), OscillationControl()).fit(Classifier(), datamodule=Data())
    with pytest.raises(ValueError, match=r"the schedule \(0.1, 0.01\) needs the length of the fit: set max_epochs or"):
        trainer(tmp_path, QuantizationAwareTraining(policy), OscillationControl(freezing=[0.1, 0.01]), epochs=-1).fit(
            Classifier(), datamodule=Data()
        )
    with pytest.raises(ValueError, match="OscillationControl needs QuantizationAwareTraining beside it"):
        trainer(tmp_path, OscillationControl()).fit(Classifier(), datamodule=Data())


def test_a_fused_optimizer_in_half_precision_is_refused_where_gradients_are_added() -> None:
    fused = torch.optim.SGD([nn.Parameter(torch.zeros(1))], fused=True)
    fitting: Any = SimpleNamespace(precision="16-mixed", optimizers=[fused])
    with pytest.raises(ValueError, match="has yet to unscale: write fused=False, or precision='bf16-mixed'"):
        OscillationControl(dampening=0.1).on_train_start(fitting, Classifier())
