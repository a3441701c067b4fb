"""FP8, MX and NVFP4 against numpy with ml_dtypes, bit for bit, for weights and for inputs of layers."""

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

import qat
from qat import TensorRule
from qat.floating_point import E4M3
from qat.quantizers import MX, NVFP4, ScaledFloat
from tests.oracles import floating_point as oracle
from tests.quantizers.catalogue import CONFIGS, OF_FORMATS, calibrate

FORMATS = {name: yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in OF_FORMATS}
each = pytest.mark.parametrize("name", FORMATS)
WEIGHTS = {
    "linear": (6, 64),
    "shorter block": (5, 45),
    "narrower than a block": (4, 3),
    "convolution": (4, 33, 3, 2),
}


def rule(name: str, **options: object) -> TensorRule:
    return TensorRule(OF_FORMATS[name], quantizer=FORMATS[name], **options)


def expected(name: str, x: np.ndarray, axis: int | None, element: str) -> np.ndarray:
    """x in the format, with scales along `axis`; of FP8, one for each index of the other axes (None: one)."""
    if name.startswith("mx"):
        return oracle.mx(x, oracle.blocks(x.shape, 32, axis), element)
    if name == "nvfp4":
        return oracle.nvfp4(x, oracle.blocks(x.shape, 16, axis))
    largest = np.abs(x).max() if axis is None else np.abs(x).max(axis=axis, keepdims=True)
    scale = np.maximum(largest / np.float32(oracle.LARGEST[element]), np.float32(2.0**-60))
    return oracle.rounded(x / scale, element) * scale


def values(shape: tuple[int, ...]) -> Tensor:
    """Of many sizes, with a block of zeros, a huge value and a tiny one."""
    x = torch.randn(shape) * torch.exp2(torch.randint(-12, 12, (shape[0], *[1] * (len(shape) - 1))).float())
    x[0] = 0.0
    x[1].view(-1)[:2] = torch.tensor([3e20, -1e-30])
    return x


@each
@pytest.mark.parametrize("shape", WEIGHTS.values(), ids=WEIGHTS)
def test_a_weight_is_what_the_document_says(name: str, shape: tuple[int, ...]) -> None:
    quantizer = rule(name, granularity="per_channel").build(shape)
    x = values(shape)
    calibrate(quantizer, x).eval()
    axis = tuple(range(1, len(shape))) if name.startswith("fp8") else 1
    wanted = expected(name, x.numpy(), axis, quantizer.element)
    assert np.array_equal(quantizer(x).numpy(), wanted)
    assert torch.equal(quantizer.dequantize(quantizer.quantize(x)), quantizer(x))
    assert int(quantizer.quantize(x).abs().max()) <= quantizer.format.highest_code


@each
@pytest.mark.parametrize(("layer", "axis"), [(nn.Linear, -1), (nn.Conv2d, 1)])
def test_an_input_is_what_the_document_says(name: str, layer: type[nn.Module], axis: int) -> None:
    found = qat.transform.policy.Rule("*", None, rule(name)).input_of(layer)
    quantizer = found.build()
    assert isinstance(quantizer, ScaledFloat)
    assert quantizer.ready
    x = values((3, 40, 4, 45))
    along = None if name.startswith("fp8") and layer is nn.Conv2d else axis
    wanted = expected(name, x.numpy(), along, quantizer.element)
    assert np.array_equal(quantizer(x).numpy(), wanted)
    assert not quantizer.state_dict().keys() - {"initialized"}
    if name != "nvfp4" and along is not None:  # the rest of the batch does not matter
        assert torch.equal(quantizer(x[2:]), quantizer(x)[2:])
    assert quantizer(x[:0]).shape == x[:0].shape


@each
def test_gradients_pass_and_the_scales_follow_the_weight_in_training_alone(name: str) -> None:
    quantizer = rule(name, granularity="per_channel").build((4, 48))
    x = torch.randn(4, 48, requires_grad=True)
    calibrate(quantizer, x)
    before = quantizer.qparams().scale.clone()
    gradient = torch.randn_like(x)
    quantizer.eval()(8 * x).backward(gradient)
    assert torch.equal(x.grad, 8 * gradient)
    assert torch.equal(quantizer.qparams().scale, before)
    quantizer.train()(8 * x)
    assert torch.equal(quantizer.qparams().scale, 8 * before)


@each
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_spoils_its_block_and_no_more(name: str, value: float) -> None:
    quantizer = rule(name, granularity="per_channel").build((4, 64)).train()
    calibrate(quantizer, torch.randn(4, 64))
    x = torch.randn(4, 64)
    x[2, 3] = value
    y = quantizer(x)
    assert not torch.isfinite(y[2, 3])
    if name != "nvfp4":
        assert torch.isfinite(y[[0, 1, 3]]).all()
    assert torch.isfinite(quantizer(torch.ones(4, 64))).all()  # the next step has scales again


def test_scales_are_kept_in_their_own_bits() -> None:
    mx, nvfp4 = (rule(name, granularity="per_channel").build((4, 64)) for name in ("mxfp4", "nvfp4"))
    assert {n: (b.dtype, b.numel()) for n, b in mx.named_buffers() if "exponent" in n} == {
        "shared_exponent": (torch.uint8, 8)
    }
    x = torch.randn(4, 64)
    calibrate(nvfp4, x)
    stored = nvfp4.block_scale.numpy().view(oracle.TYPES["E4M3"]).astype(np.float32)
    assert nvfp4.block_scale.dtype is torch.uint8
    assert stored.max() == E4M3.largest
    assert torch.equal(torch.from_numpy(stored) * nvfp4.tensor_scale, nvfp4.qparams().scale)


def test_transposed_convolutions_have_their_inputs_first() -> None:
    quantizer = rule("mxfp4", granularity="per_channel").build((64, 5, 3), axis=1)
    x = torch.randn(64, 5, 3)
    wanted = oracle.mx(x.numpy(), oracle.blocks((64, 5, 3), 32, 0), "E2M1")
    assert np.array_equal(calibrate(quantizer, x).eval()(x).numpy(), wanted)


def test_what_it_cannot_be_is_refused() -> None:
    spec = qat.QuantSpec(qat.Grid(4), qat.PerChannel())
    with pytest.raises(ValueError, match="MX has 8 bits, not 4: write bits: 8"):
        MX(spec, (4, 32), element="E4M3")
    with pytest.raises(ValueError, match="element='E3M3' is not a format of MX: write E2M1 or E2M3"):
        MX(spec, (4, 32), element="E3M3")
    with pytest.raises(
        ValueError, match=r"group_size=64 is not possible.*every 16 inputs: write granularity: per_channel"
    ):
        NVFP4(qat.QuantSpec(qat.Grid(4), qat.PerGroup(64)), (4, 64))
    with pytest.raises(ValueError, match="granularity=per_tensor is not possible"):
        NVFP4(qat.QuantSpec(qat.Grid(4)), (4, 64))
    with pytest.raises(ValueError, match=r"one input channel.*quantizer: FP8 and bits: 8"):
        NVFP4(spec, (4, 1, 3, 3))
    with pytest.raises(ValueError, match="symmetric: true"):
        NVFP4(qat.QuantSpec(qat.Grid(4, signed=False), qat.PerChannel(), symmetric=False), (4, 64))


@pytest.mark.parametrize("element", ["E4M3", "E5M2"])
def test_a_static_input_has_the_scale_of_calibration_and_saturates_beyond(element: str) -> None:
    """Every code, every tie between two, what is beyond, NaN: as ml_dtypes rounds x / scale."""
    policy_rule = TensorRule(8, quantizer={"_target_": "FP8Static", "element": element}, observer="MinMax")
    quantizer = policy_rule.build()
    assert not quantizer.ready
    calibrate(quantizer, torch.tensor([-3.0, 1.0]))
    scale = np.float32(3.0) / np.float32(oracle.LARGEST[element])
    codes = np.unique(oracle.values(element))
    x = np.concatenate([codes, (codes[1:] + codes[:-1]) / 2, [1e30, -1e30, np.nan]]).astype(np.float32) * scale
    with np.errstate(invalid="ignore"):
        wanted = oracle.rounded(x / scale, element) * scale
    for training in (False, True):  # nothing that comes later moves the scale
        quantizer.train(training)
        assert np.array_equal(quantizer(torch.from_numpy(x)).numpy(), wanted, equal_nan=True)
    assert quantizer.state_dict()["scale"] == torch.tensor(scale)
    finite = torch.from_numpy(x[:-1])
    assert torch.equal(quantizer.dequantize(quantizer.quantize(finite)), quantizer(finite))
    with pytest.raises(ValueError, match="write quantizer: FP8 for weights"):
        policy_rule.build((4, 3))
