"""Where ranges come from: state dicts that fit in part, copies made before calibration, the sign of the data."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import qat
from qat import Grid, TensorRule, calibrate, prepare
from qat.quantizers import Quantizer
from qat.transform import quantizers


def network(outputs: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, outputs))


def calibrated(outputs: int = 3) -> nn.Module:
    prepared = prepare(network(outputs), "w4a8")
    calibrate(prepared, [torch.randn(16, 4)])
    return prepared


def observed(quantizer: Quantizer, *batches: Tensor) -> Quantizer:
    quantizer.mode = qat.Mode.OBSERVE
    for x in batches:
        quantizer(x)
    quantizer.finish_observing()
    quantizer.mode = qat.Mode.QUANTIZE
    return quantizer


@pytest.mark.parametrize("assign", [False, True])
def test_a_head_of_another_size_is_not_ready_without_its_scale(assign: bool) -> None:
    source, model = calibrated(outputs=5).state_dict(), prepare(network(), "w4a8")
    mine = model.state_dict()
    fitting = {k: v for k, v in source.items() if v.shape == mine[k].shape}
    model.load_state_dict(fitting, strict=False, assign=assign)
    waiting = [name for name, q in quantizers(model).items() if not q.ready]
    assert waiting == ["2.weight_quantizer"]
    assert bool(source["2.weight_quantizer.initialized"])  # the caller's own tensors are left alone
    with pytest.raises(RuntimeError, match=r"quantizer '2.weight' has no range yet"):
        model(torch.randn(2, 4))
    assert calibrate(model, [torch.randn(16, 4)]) == 1
    assert model(torch.randn(64, 4)).std(dim=0).min() > 0


def test_a_checkpoint_without_quantizers_changes_none() -> None:
    model = calibrated()
    before = copy.deepcopy(model.state_dict())
    model.load_state_dict({k: v for k, v in before.items() if "quantizer" not in k and "sites" not in k}, strict=False)
    assert all(q.ready for q in quantizers(model).values())


def test_an_average_made_before_calibration_follows() -> None:
    model = prepare(network(), "w4a8")
    average, clone = AveragedModel(model), copy.deepcopy(model)
    calibrate(model, [torch.randn(16, 4)])
    average.update_parameters(model)
    x = torch.randn(8, 4)
    assert torch.equal(average(x), model(x))
    assert calibrate(average.module, []) == 0
    assert torch.equal(copy.deepcopy(average)(x), model(x))
    with pytest.raises(RuntimeError, match="has no range yet"):
        clone(x)


@pytest.mark.parametrize("name", ["LSQ", "LSQPlus", "PACT", "Static", "TQT", "DoReFa"])
def test_a_sign_that_the_graph_does_not_prove_is_read_from_the_data(name: str) -> None:
    rule = TensorRule(4, quantizer=name)
    x = torch.rand(1000) + 0.01
    found = observed(rule.build(signed=None), x[:500], x[500:])
    told = observed(rule.build(signed=False), x)
    assert found.spec.grid == found.policy_grid == Grid(4, signed=False)
    assert torch.equal(found(x), told(x))
    assert observed(rule.build(signed=None), x, -x).spec.grid == Grid(4)
    assert observed(rule.build(signed=None), x, torch.tensor([-1e-6])).spec.grid.signed is False
    assert TensorRule(4, quantizer=name, signed=True).build(signed=None).sign is None  # the policy's word counts

    restored = rule.build(signed=None)
    restored.load_state_dict(found.state_dict())
    assert torch.equal(restored(x), found(x))
    with pytest.raises(RuntimeError, match="signed"):  # of a quantizer whose sign was known: it does not say which
        restored.load_state_dict(observed(rule.build(signed=True), x).state_dict())


def test_the_sign_survives_other_bits_and_a_new_calibration() -> None:
    quantizer = observed(TensorRule(4).build(signed=None), torch.rand(100))
    assert quantizer.set_bits(8)
    assert quantizer.spec.grid == Grid(8, signed=False)
    assert observed(quantizer, torch.randn(100)).spec.grid == Grid(8)
    quantizer.set_bits(0)
    assert quantizer.spec.grid == Grid(4)


@pytest.mark.parametrize(
    "rule", [TensorRule(4, symmetric=False), TensorRule(4, quantizer="APoT"), TensorRule(4, quantizer="N2UQ")]
)
def test_affine_and_look_up_grids_are_what_they_were(rule: TensorRule) -> None:
    quantizer = observed(rule.build(signed=None), torch.rand(100))
    assert quantizer.sign is None
    assert quantizer.spec == rule.build(signed=True).spec


@pytest.mark.parametrize("x", [torch.arange(4), torch.tensor([True, False])])
def test_integers_and_masks_pass_unchanged(x: Tensor) -> None:
    quantizer = TensorRule(4).build()
    assert quantizer(x) is x
    assert not quantizer.ready
