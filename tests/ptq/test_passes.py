"""What every list of passes promises, and what the passes that move statistics do."""

import copy
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.nn import as_quantized, is_quantized
from qat.ptq import (
    BRECQ,
    GPTQ,
    AdaRound,
    BatchNormReestimation,
    BiasCorrection,
    Calibrate,
    CrossLayerEqualization,
    FoldBatchNorm,
    HessianMSE,
    NoGraphError,
    Pass,
    PTQState,
    Stage,
    apply_passes,
    check_order,
)
from qat.transform import quantizers
from tests import networks
from tests.networks import OptionA, build, images

STEPS = 50
LISTS: dict[str, list[Pass]] = {
    "AdaRound": [Calibrate("MinMax"), AdaRound(STEPS, 16)],
    "BRECQ": [Calibrate("MinMax"), BRECQ(STEPS, 16)],
    "QDrop": [Calibrate("MinMax"), BRECQ(STEPS, 16, drop=0.5)],
    "GPTQ": [Calibrate("MinMax"), GPTQ()],
    "Hessian MSE": [Calibrate("MinMax"), HessianMSE()],
    "bias correction": [Calibrate("MinMax"), BiasCorrection()],
    "BatchNorm": [Calibrate("MinMax"), BatchNormReestimation()],
    "all": [CrossLayerEqualization(), FoldBatchNorm(), Calibrate("MinMax"), BiasCorrection(), AdaRound(STEPS, 16)],
}


def quick(step: Pass, iterations: int = 4) -> Pass:
    """The same pass with fewer iterations."""
    if isinstance(step, AdaRound | BRECQ):
        step = copy.copy(step)
        step.reconstruction = replace(step.reconstruction, iterations=iterations)
    return step


def outputs(network: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...], x: Tensor) -> list[Tensor]:
    """Of all modules of that kind, in the order in which they run."""
    found: list[Tensor] = []
    for module in network.modules():
        if isinstance(module, kind):
            module.register_forward_hook(lambda _m, _i, y: found.append(y.detach().double()))
    network(x)
    return found


every = pytest.mark.parametrize("passes", LISTS.values(), ids=LISTS.keys())
BATCHES = list(images(96).split(32))


@every
@pytest.mark.parametrize("network", networks.INTEGER)
def test_the_result_becomes_integers_that_compute_the_same(network: type[nn.Module], passes: list[Pass]) -> None:
    made = build(network)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    found = apply_passes([quick(p) for p in passes], made, "w4a8", [images(16)])
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert not any(module.training for module in found.modules())
    x = images(96)
    expected, integer = found(x), qat.convert(found)(x)
    assert (expected - integer).abs().mean() < 0.01 * expected.abs().mean()


@every
def test_not_one_code_differs_in_onnx_runtime(passes: list[Pass], tmp_path) -> None:
    integer = qat.convert(apply_passes([quick(p) for p in passes], build(OptionA), "w4a4", BATCHES))
    qat.export_onnx(integer, images(2), tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [images(50, 2)]).exact


@pytest.mark.parametrize("name", ["AdaRound", "BRECQ", "QDrop", "GPTQ", "Hessian MSE", "bias correction", "BatchNorm"])
def test_a_pass_brings_every_layer_nearer_to_the_float_network(name: str) -> None:
    made = build(OptionA)
    found, plain = (apply_passes(p, made, "w2a8", BATCHES) for p in (LISTS[name], [Calibrate("MinMax")]))
    x = torch.cat(BATCHES)
    expected, ours, usual = (outputs(m, (nn.BatchNorm2d, nn.Linear), x) for m in (made, found, plain))

    def error(of: list[Tensor]) -> float:
        return sum(((a - b).square().mean() / b.var()).item() for a, b in zip(of, expected, strict=True))

    assert error(ours) < 0.9 * error(usual)


@pytest.mark.parametrize("name", ["AdaRound", "BRECQ", "QDrop", "GPTQ"])
@pytest.mark.parametrize("granularity", [{}, {"granularity": "per_group", "group_size": 8}, {"symmetric": False}])
def test_rounded_weights_lie_on_the_grid(name: str, granularity: dict[str, object]) -> None:
    rule = {"match": "*", "weight": {"bits": 3, **granularity}, "activation": {"bits": 8}}
    policy = qat.load_policy({"rules": {"all": rule}})
    if granularity.get("granularity"):
        policy = qat.load_policy({"rules": {"all": {**rule, "match": "conv[23]"}, "head": {**rule, "match": "linear"}}})
    made = build(OptionA)
    passes = [quick(step, 30) for step in LISTS[name]]
    found, plain = (apply_passes(p, made, policy, BATCHES) for p in (passes, [Calibrate("MinMax")]))
    moved = 0
    for layer_name, layer in found.named_modules():
        if is_quantized(layer):
            quantizer = as_quantized(layer).weight_quantizer
            assert quantizer is not None
            assert torch.equal(quantizer(layer.weight), layer.weight)
            other = as_quantized(plain.get_submodule(layer_name))
            moved += int((quantizer.quantize(layer.weight) != other.weight_quantizer.quantize(other.weight)).sum())
    assert moved > 0


@pytest.mark.parametrize("name", ["AdaRound", "QDrop"])
def test_equal_seeds_give_equal_networks_and_the_random_state_stays(name: str) -> None:
    made, state = build(OptionA), torch.get_rng_state()
    passes = [quick(step) for step in LISTS[name]]
    found = [apply_passes(passes, made, "w3a4", BATCHES, seed).state_dict() for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(found[0].values(), found[1].values(), strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(found[0].values(), found[2].values(), strict=True))


def test_brecq_learns_step_sizes_and_adaround_does_not() -> None:
    def scales(passes: list[Pass]) -> dict[str, Tensor]:
        found = apply_passes(passes, build(OptionA), "w3a4", BATCHES)
        return {n: q.qparams().scale for n, q in quantizers(found).items() if n.startswith("sites.")}

    plain, ada, brecq = (scales(p) for p in ([Calibrate("MinMax")], LISTS["AdaRound"], LISTS["BRECQ"]))
    assert all(torch.equal(plain[name], ada[name]) for name in plain)
    assert sum(not torch.equal(plain[name], brecq[name]) for name in plain) >= len(plain) - 1  # all but the last pool's


def test_bias_correction_gives_every_layer_the_mean_of_the_float_network() -> None:
    made = build(OptionA)
    found, plain = (apply_passes(p, made, "w2a4", BATCHES) for p in (LISTS["bias correction"], [Calibrate("MinMax")]))
    x = torch.cat(BATCHES)
    expected, corrected, usual = (
        [y.transpose(0, 1).flatten(1).mean(dim=1) for y in outputs(m, (nn.BatchNorm2d, nn.Linear), x)]
        for m in (made, found, plain)
    )
    assert len(expected) == 4
    for mean, ours in zip(expected, corrected, strict=True):
        torch.testing.assert_close(ours, mean, rtol=0, atol=1e-4)
    assert max((theirs - mean).abs().max() for theirs, mean in zip(usual, expected, strict=True)) > 0.1


def test_bias_correction_gives_a_bias_to_a_layer_that_has_none() -> None:
    made = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(), nn.Conv2d(4, 2, 3, bias=False))
    found = apply_passes(LISTS["bias correction"], made, "w2a4", BATCHES)
    x = torch.cat(BATCHES)
    pairs = zip(outputs(found, nn.Conv2d, x), outputs(made, nn.Conv2d, x), strict=True)
    assert all(torch.allclose(a.mean(dim=(0, 2, 3)), b.mean(dim=(0, 2, 3)), atol=1e-4) for a, b in pairs)


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ((nn.ConvTranspose2d(3, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)), (16, 3, 6, 6)),
        ((nn.ConvTranspose1d(3, 4, 2), nn.ReLU(), nn.ConvTranspose1d(4, 2, 2)), (16, 3, 6)),
        ((nn.Conv3d(3, 4, 2), nn.ReLU(), nn.Conv3d(4, 2, 1)), (16, 3, 5, 4, 2)),
        ((nn.Embedding(9, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), (16, 5)),
    ],
)
def test_bias_correction_gives_layers_of_every_kind_their_mean(layers: tuple[nn.Module, ...], shape) -> None:
    torch.manual_seed(0)
    made = nn.Sequential(*layers).eval()
    x = torch.randn(shape) if len(shape) != 2 else torch.randint(9, shape)
    found = apply_passes(LISTS["bias correction"], made, "w2a4", [x[:10], x[10:]])
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    for ours, theirs in zip(outputs(found, kinds, x), outputs(made, kinds, x), strict=True):
        channels = -1 if isinstance(layers[0], nn.Embedding) else 1
        means = [y.movedim(channels, -1).flatten(0, -2).mean(0) for y in (ours, theirs)]
        torch.testing.assert_close(*means, rtol=0, atol=1e-4)


def test_bias_correction_takes_batches_of_any_size() -> None:
    """Every position counts alike; a batch may be empty."""
    made, x = build(OptionA), torch.cat(BATCHES)
    parts = [[x], [x[:3], x[:0], x[3:]]]
    whole, cut = (apply_passes(LISTS["bias correction"], made, "w4a8", batches) for batches in parts)
    for ours, theirs in zip(whole.state_dict().values(), cut.state_dict().values(), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["AdaRound", "BRECQ", "GPTQ", "bias correction"])
def test_networks_of_other_types(name: str, dtype: torch.dtype) -> None:
    batches = [batch.to(dtype) for batch in BATCHES]
    made = build(OptionA).to(dtype)
    found = apply_passes([quick(step) for step in LISTS[name]], made, "w4a8", batches)
    with torch.no_grad():
        ours, theirs = found(batches[0]).float(), made(batches[0]).float()
    assert (ours - theirs).norm() < 0.2 * theirs.norm()


class ThreeAxes(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv3d(3, 6, 1), nn.ReLU(), nn.Conv3d(6, 4, 2), nn.BatchNorm3d(4), nn.Conv3d(4, 2, 1))


@pytest.mark.parametrize("network", [OptionA, ThreeAxes])
def test_reestimated_batchnorms_give_the_statistics_of_the_float_network(network: type[nn.Module]) -> None:
    made = build(network)
    x = torch.cat(BATCHES) if network is OptionA else torch.cat(BATCHES).unflatten(3, (-1, 2))
    found = apply_passes(LISTS["BatchNorm"], made, "w2a4", x.split(32))
    norms = (nn.BatchNorm2d, nn.BatchNorm3d)
    for ours, theirs in zip(outputs(found, norms, x), outputs(made, norms, x), strict=True):
        (ours, theirs) = (y.transpose(0, 1).flatten(1) for y in (ours, theirs))
        torch.testing.assert_close(ours.mean(dim=1), theirs.mean(dim=1), rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(ours.var(dim=1), theirs.var(dim=1), rtol=1e-3, atol=1e-3)


CORRECTIONS = [BiasCorrection, BatchNormReestimation]


@pytest.mark.parametrize("first", CORRECTIONS)
@pytest.mark.parametrize("second", CORRECTIONS)
def test_what_is_corrected_is_not_corrected_again(first: type[Pass], second: type[Pass]) -> None:
    made, x = build(OptionA), torch.cat(BATCHES)
    once, twice = (
        apply_passes([Calibrate("MinMax"), *passes], made, "w2a4", BATCHES)
        for passes in ([second()], [first(), second()])
    )
    if first is second:
        for ours, theirs in zip(twice.state_dict().values(), once.state_dict().values(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    for ours, theirs in zip(outputs(twice, nn.BatchNorm2d, x), outputs(made, nn.BatchNorm2d, x), strict=True):
        torch.testing.assert_close(ours.mean(dim=(0, 2, 3)), theirs.mean(dim=(0, 2, 3)), rtol=0, atol=1e-3)


class SharedNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.b(self.norm(self.a(x)).relu()))


def test_a_batchnorm_of_two_layers_is_corrected_in_their_biases() -> None:
    torch.manual_seed(0)
    made, x = SharedNorm().eval(), torch.cat(BATCHES)
    found = apply_passes(LISTS["bias correction"], made, "w2a4", BATCHES)
    for ours, theirs in zip(outputs(found, nn.BatchNorm2d, x), outputs(made, nn.BatchNorm2d, x), strict=True):
        torch.testing.assert_close(ours.mean(dim=(0, 2, 3)), theirs.mean(dim=(0, 2, 3)), rtol=0, atol=1e-4)


class Untraceable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x) if x.sum() > 0 else x)


def test_a_network_without_a_graph_is_calibrated_and_nothing_more() -> None:
    batches = [torch.ones(2, 4)]
    apply_passes([Calibrate()], Untraceable(), "w8a8", batches)
    for passes in ([Calibrate(), AdaRound()], [CrossLayerEqualization(), Calibrate()]):
        with pytest.raises(NoGraphError, match=r"Untraceable cannot be traced: .*, and this pass needs the graph"):
            apply_passes(passes, Untraceable(), "w8a8", batches)


class Staged(Pass):
    """Somebody's first own pass."""

    stage = "after"  # type: ignore[assignment]

    def apply(self, state: PTQState) -> None:
        """Nothing."""


@pytest.mark.parametrize(
    ("passes", "message"),
    [
        ([AdaRound()], "a list of passes has Calibrate once, this one 0 times"),
        ([Calibrate(), Calibrate()], "a list of passes has Calibrate once, this one 2 times"),
        ([AdaRound(), Calibrate()], "AdaRound belongs after Calibrate: it needs quantizers with ranges"),
        ([Calibrate(), CrossLayerEqualization()], "CrossLayerEqualization belongs before Calibrate"),
        ([Calibrate(), GPTQ(), HessianMSE()], "HessianMSE belongs before GPTQ, whose rounding it would undo"),
        (
            [Calibrate(), Staged()],
            r"^Staged.stage='after' is no stage: write one of qat\.ptq\.Stage\.FLOAT, .*QUANTIZED\.$",
        ),
        ([Calibrate, AdaRound], "is not a pass: write one of qat.ptq, for example"),
    ],
)
def test_an_impossible_order_says_so(passes: list[Pass], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_order(passes)


def test_images_of_several_sizes_are_refused_where_they_are_joined() -> None:
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    batches = [torch.randn(2, 3, 8, 8), torch.randn(2, 3, 9, 9)]
    apply_passes([Calibrate(), HessianMSE(), GPTQ()], made, "w4a8", batches)
    with pytest.raises(
        ValueError, match=r"they differ in size \(\(3, 8, 8\) and \(3, 9, 9\) at .*: give calibration batches"
    ):
        apply_passes([Calibrate(), AdaRound()], made, "w4a8", batches)


def test_there_must_be_data_and_a_float_network() -> None:
    with pytest.raises(ValueError, match="batches is empty: passes need calibration inputs"):
        apply_passes([Calibrate()], build(OptionA), "w8a8", [])
    with pytest.raises(ValueError, match="already has quantizers: apply passes to the float network"):
        apply_passes([Calibrate()], qat.prepare(build(OptionA), "w8a8"), "w8a8", BATCHES)


class Leaves(Pass):
    """A pass of a user's own that puts something in the place of the network."""

    def __init__(self, network: Any, stage: Stage = Stage.QUANTIZED) -> None:
        self.network, self.stage = network, stage

    def apply(self, state: PTQState) -> None:
        state.network = state.network.train() if self.network == "training" else self.network


def test_what_a_pass_leaves_behind_is_a_network_of_its_stage() -> None:
    network, batches = nn.Sequential(nn.Linear(4, 3)), [torch.randn(8, 4)]
    assert not apply_passes([Calibrate(), Leaves("training")], network, "w8a8", batches).training
    for left in (None, nn.Sequential(nn.Linear(4, 3))):
        with pytest.raises(
            ValueError, match=r"Leaves.apply left .* as state.network: leave the network with its quantizers"
        ):
            apply_passes([Calibrate(), Leaves(left)], network, "w8a8", batches)
    with pytest.raises(ValueError, match=r"Leaves.apply left a .* as state.network: leave a float network there"):
        apply_passes([Leaves(qat.prepare(network, "w8a8"), Stage.FLOAT), Calibrate()], network, "w8a8", batches)


def test_the_progress_callback_gets_every_step() -> None:
    heard: list[tuple[str, int, int]] = []
    apply_passes(LISTS["all"], build(OptionA), "w4a4", BATCHES, on_progress=lambda *what: heard.append(what))
    last = {what: (done, total) for what, done, total in heard}
    assert list(last) == ["cross-layer equalization", "calibrate", "bias correction", "AdaRound"]
    assert all(done == total > 0 for done, total in last.values())
    assert all(a[1] <= b[1] for a, b in itertools.pairwise(heard) if a[0] == b[0])
