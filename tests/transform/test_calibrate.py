import copy

import pytest
import torch
from torch import Tensor, nn

import qat
from qat import Mode, calibrate, prepare
from qat.observers import MSE, MinMax
from qat.quantizers import Quantizer
from qat.transform import quantizers
from tests.transform.small_networks import Residual, net


def prepared_residual() -> tuple[nn.Module, Tensor]:
    model, x = net("Residual_operator")
    return prepare(model, "w4a4"), x


def minmax(model: nn.Module) -> nn.Module:
    """With observers whose result is easy to say."""
    return prepare(model, qat.load_policy("w4a4").with_parts("LSQ", "MinMax"))


def test_ranges_are_those_of_the_float_network_over_all_batches() -> None:
    model, x = net("Residual_operator")
    batches = [x, 3 * x, 0.1 * x]
    prepared = minmax(model)
    assert calibrate(prepared, batches) == len(quantizers(prepared)) == 11
    model.eval()
    with torch.no_grad():
        stem = torch.cat([model.relu(model.bn1(model.conv1(b))) for b in batches])
    scale = lambda name: prepared.sites[name].qparams().scale.item()  # noqa: E731
    assert scale("x_input") == pytest.approx((3 * x).abs().max().item() / 127)
    assert scale("conv1") == pytest.approx(stem.max().item() / 255)
    assert scale("conv1_to_4_bits") == pytest.approx(stem.max().item() / 15)
    weight = prepared.conv2.weight_quantizer.qparams().scale
    torch.testing.assert_close(weight, model.conv2.weight.detach().abs().amax((1, 2, 3)) / 7)


def test_calibration_leaves_statistics_flags_modes_and_parameters_alone() -> None:
    prepared, x = prepared_residual()
    prepared.train()
    prepared.bn2.eval()
    prepared.requires_grad_(True)
    before = {k: v.clone() for k, v in prepared.state_dict().items() if "sites" not in k and "quantizer" not in k}
    flags = [m.training for m in prepared.modules()]
    calibrate(prepared, [x])
    state = prepared.state_dict()
    assert all(torch.equal(state[k], v) for k, v in before.items())
    assert any(k.endswith("running_mean") for k in before)
    assert [m.training for m in prepared.modules()] == flags
    assert {q.mode for q in quantizers(prepared).values()} == {Mode.QUANTIZE}
    assert all(p.grad is None for p in prepared.parameters())


def test_flags_and_modes_come_back_after_an_exception() -> None:
    prepared, x = prepared_residual()
    prepared.train()
    with pytest.raises(RuntimeError):
        calibrate(prepared, [x, torch.randn(1, 1)])
    assert all(m.training for m in prepared.modules())
    assert {q.mode for q in quantizers(prepared).values()} == {Mode.QUANTIZE}


def test_a_calibration_that_failed_leaves_nothing_behind() -> None:
    model, x = net("Residual_operator")
    failed, clean = minmax(model), minmax(model)
    with pytest.raises(RuntimeError):
        calibrate(failed, [100 * x, torch.randn(1, 1)])
    calibrate(failed, [x])
    calibrate(clean, [x])
    assert torch.equal(failed(x), clean(x))


def test_what_is_initialized_is_not_observed_again() -> None:
    prepared, x = prepared_residual()
    prepared.sites["conv1"].set_range(torch.tensor([0.0]), torch.tensor([255.0]))
    assert calibrate(prepared, [x]) == len(quantizers(prepared)) - 1
    assert prepared.sites["conv1"].qparams().scale.item() == 1.0
    before = copy.deepcopy(prepared.state_dict())

    def explode():
        raise AssertionError("a batch was consumed")
        yield

    assert calibrate(prepared, explode()) == 0
    assert all(torch.equal(v, before[k]) for k, v in prepared.state_dict().items())


def test_a_weight_is_observed_once_and_not_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, x = prepared_residual()
    seen: list[tuple[int, ...]] = []
    update = MSE.update
    monkeypatch.setattr(MSE, "update", lambda self, x: (seen.append(tuple(x.shape)), update(self, x))[1])
    calibrate(prepared, [x] * 3)
    rows = [shape for shape in seen if shape[0] > 1]
    assert len(rows) == 4  # conv1, conv2, conv3, fc
    assert len(seen) == 4 + 3 * 7


def test_observers_see_nothing_when_quantizing_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, x = prepared_residual()
    calibrate(prepared, [x])
    monkeypatch.setattr(MSE, "update", lambda self, x: pytest.fail("observed"))
    prepared.train()(x)
    prepared.eval()(x)
    with qat.mode(prepared, Mode.OFF):
        prepared(x)
    with qat.mode(prepared, Mode.OBSERVE):  # ready: nothing to observe
        prepared(x)


@pytest.mark.parametrize(
    ("batch", "forward"),
    [
        (lambda x: x, None),
        (lambda x: (x,), None),
        (lambda x: [x], None),
        (lambda x: {"x": x}, None),
        (lambda x: (x, torch.zeros(4)), lambda model, batch: model(batch[0])),
    ],
    ids=["tensor", "tuple", "list", "dict", "forward"],
)
def test_forms_of_a_batch(batch, forward) -> None:
    (one, x), (other, _) = prepared_residual(), prepared_residual()
    calibrate(one, [batch(x)], forward)
    calibrate(other, [x])
    assert torch.equal(one(x), other(x))


def test_no_batches_names_a_quantizer() -> None:
    prepared, _ = prepared_residual()
    with pytest.raises(ValueError, match=r"quantizer 'sites.x_input' cannot be calibrated: MSE has seen no data"):
        calibrate(prepared, [])


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_batch_that_is_not_finite_is_named(value: float) -> None:
    prepared, x = prepared_residual()
    broken = x.clone()
    broken[0, 0, 0, 0] = value
    with pytest.raises(
        ValueError, match=r"Calibration batch 1 holds NaN or infinity in x: mend these samples, or leave"
    ):
        calibrate(prepared, [x, {"x": broken}])


def test_nan_in_a_weight_names_its_quantizer() -> None:
    prepared, x = prepared_residual()
    with torch.no_grad():
        next(prepared.parameters()).fill_(torch.nan)
    with pytest.raises(ValueError, match=r"quantizer '.*' cannot be calibrated: the range .* is not finite"):
        calibrate(prepared, [x])


def test_a_model_without_quantizers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has no quantizers: call qat.prepare\(model, policy\) first"):
        calibrate(Residual(), [torch.randn(4, 3, 8, 8)])


def test_before_calibration_the_message_names_the_tensor() -> None:
    prepared, x = prepared_residual()
    with pytest.raises(RuntimeError, match=r"quantizer 'x_input' has no range yet: call qat.calibrate"):
        prepared(x)


def test_mode_restores_each_quantizer_also_after_an_exception() -> None:
    prepared, _ = prepared_residual()
    first, *others = quantizers(prepared).values()
    first.mode = Mode.OFF

    def modes() -> set[Mode]:
        return {q.mode for q in [first, *others]}

    def fail_inside() -> None:
        with qat.mode(prepared, Mode.OBSERVE):
            assert modes() == {Mode.OBSERVE}
            with qat.mode(prepared, Mode.QUANTIZE):
                assert modes() == {Mode.QUANTIZE}
            assert modes() == {Mode.OBSERVE}
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert first.mode is Mode.OFF
    assert {q.mode for q in others} == {Mode.QUANTIZE}


def test_quantizers_are_found_by_name() -> None:
    prepared, _ = prepared_residual()
    found = quantizers(prepared)
    assert all(isinstance(q, Quantizer) and prepared.get_submodule(n) is q for n, q in found.items())
    assert len(found) == 11
    assert not any(isinstance(q.observer, MinMax) and type(q.observer) is MinMax for q in found.values())


def test_again_gives_new_ranges_to_those_that_are_named() -> None:
    prepared, x = prepared_residual()
    calibrate(prepared, [x])
    before = {name: q.qparams().scale.clone() for name, q in quantizers(prepared).items()}
    assert calibrate(prepared, [3 * x]) == 0
    assert calibrate(prepared, [3 * x], again="sites.x_*") == 1
    after = {name: q.qparams().scale for name, q in quantizers(prepared).items()}
    assert [name for name in after if not torch.equal(after[name], before[name])] == ["sites.x_input"]
    torch.testing.assert_close(after["sites.x_input"], 3 * before["sites.x_input"])
    assert calibrate(prepared, [x], again=True) == len(before)
    assert all(torch.equal(q.qparams().scale, before[name]) for name, q in quantizers(prepared).items())
    with pytest.raises(
        ValueError, match=r"again='sites.nothing' is the name of no quantizer: write a glob on names such"
    ):
        calibrate(prepared, [x], again=["sites.nothing"])


def test_a_new_calibration_that_fails_leaves_the_old_ranges() -> None:
    prepared, x = prepared_residual()
    calibrate(prepared, [x])
    before = prepared(x)
    with pytest.raises(ValueError, match="cannot be calibrated"):
        calibrate(prepared, [], again="sites.*")
    assert torch.equal(prepared(x), before)
    weight = prepared.conv2.weight.data
    kept, weight[0, 0, 0, 0] = weight[0, 0, 0, 0].clone(), torch.nan
    with pytest.raises(ValueError, match=r"'conv2.weight_quantizer' cannot be calibrated"):
        calibrate(prepared, [3 * x], again=True)  # after that of conv1
    weight[0, 0, 0, 0] = kept
    assert torch.equal(prepared(x), before)


def test_observers_keep_one_weight_at_a_time() -> None:
    prepared, x = prepared_residual()
    weights = [q for q in quantizers(prepared).values() if q.is_weight]
    kept: list[int] = []

    class Counting(MSE):
        def update(self, rows: Tensor) -> None:
            super().update(rows)
            kept.append(sum(q.observer.kept is not None for q in weights))

    for quantizer in weights:
        quantizer.observer = Counting(quantizer.spec)
    calibrate(prepared, [x])
    assert kept == [1] * len(weights)


def test_a_scale_that_is_a_guess_is_said_aloud() -> None:
    prepared, x = prepared_residual()
    with pytest.warns(
        UserWarning, match=r"sites.x_input saw nothing to represent but zeros, so the first range is a guess"
    ):
        calibrate(prepared, [0 * x])


def test_empty_batches_name_a_quantizer() -> None:
    prepared, x = prepared_residual()
    with pytest.raises(ValueError, match=r"quantizer 'sites.x_input' cannot be calibrated: MSE has seen no data"):
        calibrate(prepared, [x[:0]])
