"""Dynamic against ONNX DynamicQuantizeLinear: the standard's own interpreter, and ONNX Runtime."""

import copy

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from qat import Grid, PerChannel, QuantSpec
from qat.integer import arithmetic
from qat.quantizers import Dynamic, Mode

AFFINE = QuantSpec(Grid(8, signed=False), symmetric=False)


def quantize_linear() -> onnx.ModelProto:
    names = {"y": TensorProto.UINT8, "scale": TensorProto.FLOAT, "zero_point": TensorProto.UINT8}
    node = helper.make_node("DynamicQuantizeLinear", ["x"], list(names))
    outputs = [helper.make_tensor_value_info(n, t, ["n"] if n == "y" else []) for n, t in names.items()]
    graph = helper.make_graph([node], "one", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])], outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


MODEL = quantize_linear()
SESSION = onnxruntime.InferenceSession(MODEL.SerializeToString(), providers=["CPUExecutionProvider"])
ORACLES = {"standard": ReferenceEvaluator(MODEL), "runtime": SESSION}

TENSORS = {
    "both signs": lambda: torch.randn(4097),
    "positive": lambda: torch.rand(999) + 3,
    "negative": lambda: -torch.rand(999) - 0.1,
    "zeros": lambda: torch.zeros(7),
    "one value": lambda: torch.tensor([-0.3]),
    "tiny": lambda: torch.randn(100) * 1e-12,
    "huge": lambda: torch.randn(100) * 1e30,
    "ties": lambda: torch.arange(-100, 411) / 2,
}


@pytest.mark.parametrize("oracle", ORACLES.values(), ids=ORACLES)
@pytest.mark.parametrize("make", TENSORS.values(), ids=TENSORS)
def test_it_is_dynamic_quantize_linear_bit_for_bit(make, oracle):
    quantizer = Dynamic(AFFINE)
    if oracle is ORACLES["standard"] and make is TENSORS["zeros"]:
        pytest.skip("the interpreter's scale of an empty range is 1/255, the runtime's is 1; no code depends on it")
    for seed in range(20):
        torch.manual_seed(seed)
        x = make()
        y, scale, zero_point = oracle.run(None, {"x": x.numpy()})
        codes, qparams = quantizer.quantize(x), quantizer.qparams()
        assert np.array_equal(codes.numpy(), y)
        assert (qparams.scale.numpy(), qparams.zero_point.numpy()) == (scale, zero_point)
        assert np.array_equal(quantizer(x).numpy(), (y.astype(np.float32) - zero_point) * scale)
        found = arithmetic.dynamic_quantize(x)
        assert [
            np.array_equal(ours.numpy(), theirs) for ours, theirs in zip(found, (y, scale, zero_point), strict=True)
        ] == [True] * 3


def test_the_gradient_passes_unchanged():
    x = torch.randn(5, 6, requires_grad=True)
    gradient = torch.randn(5, 6)
    Dynamic(AFFINE)(x).backward(gradient)
    assert torch.equal(x.grad, gradient)


def test_a_tensor_with_nothing_in_it_passes():
    assert Dynamic(AFFINE)(torch.rand(0, 3)).shape == (0, 3)


def test_nothing_is_calibrated_and_no_range_is_kept():
    quantizer = Dynamic(AFFINE)
    assert quantizer.ready
    state = copy.deepcopy(quantizer.state_dict())
    quantizer.mode = Mode.OBSERVE
    x = torch.randn(9)
    assert quantizer(x) is x
    quantizer.finish_observing()
    quantizer.mode = Mode.QUANTIZE
    assert torch.equal(quantizer(100 * x), Dynamic(AFFINE)(100 * x))
    assert state == quantizer.state_dict() == {"initialized": torch.tensor(True)}
    restored = Dynamic(AFFINE)
    restored.load_state_dict(state)
    assert restored.ready


def test_an_image_depends_on_its_batch():
    quantizer, x = Dynamic(AFFINE), torch.randn(2, 8)
    x[1] *= 50
    assert not torch.equal(quantizer(x)[:1], quantizer(x[:1]))


def spoiled(value: float) -> Tensor:
    return torch.tensor([1.0, value])


def test_what_it_cannot_be_is_refused():
    for spec in (QuantSpec(Grid(8)), QuantSpec(Grid(4, signed=False), symmetric=False)):
        with pytest.raises(ValueError, match="write bits: 8 and symmetric: false"):
            Dynamic(spec)
    with pytest.raises(ValueError, match="Dynamic is for activations"):
        Dynamic(QuantSpec(Grid(8, signed=False), PerChannel(), symmetric=False), (4, 3))
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not finite"):
            Dynamic(AFFINE)(spoiled(value))
