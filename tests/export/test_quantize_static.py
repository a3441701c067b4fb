from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from qat.export import OnnxRuntimeNetwork, QuantizeStatic
from qat.export.onnx.quantize_static import METHODS
from tests.networks import OptionA, build, images


def parts(path: Path) -> tuple[dict[str, onnx.NodeProto], dict[str, np.ndarray]]:
    graph = onnx.load(path).graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    return {node.input[0]: node for node in graph.node if node.op_type.lower().endswith("quantizelinear")}, constants


def test_ranges_come_from_the_batches_and_weights_are_int8_per_channel(tmp_path: Path) -> None:
    network, batches = build(OptionA), [images(8, seed) for seed in range(3)]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    path = QuantizeStatic()(network, batches, tmp_path / "new")
    assert path == tmp_path / "new" / "quantize_static.onnx"
    nodes, constants = parts(path)
    scale, zero_point = (constants[name] for name in nodes["x"].input[1:])
    lo, hi = (float(bound) for bound in torch.aminmax(torch.cat(batches)))
    assert scale == pytest.approx((hi - lo) / 255, rel=1e-6)
    assert (zero_point.dtype, int(zero_point)) == (np.uint8, round(-lo / float(scale)))
    weights = [node for name, node in nodes.items() if name in constants and constants[name].ndim >= 2]
    assert len(weights) == sum(p.ndim >= 2 for p in network.parameters())
    for node in weights:
        codes = constants[node.input[0]]
        assert (codes.dtype, len(constants[node.input[1]])) == (np.int8, len(codes))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("calibration", METHODS)
def test_the_file_predicts_nearly_what_the_network_predicts(
    calibration: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")  # as in a run of the front door, which prints what is logged
    network, x = build(OptionA), images(64)
    made = OnnxRuntimeNetwork(QuantizeStatic(calibration, "mine.onnx")(network, [(x, torch.zeros(64))], tmp_path))
    expected = network(x).detach()
    assert 0 < (made(x) - expected).abs().mean() < 0.1 * expected.abs().mean()
    assert made.size_bytes == (tmp_path / "mine.onnx").stat().st_size
    assert (*capsys.readouterr(), caplog.messages) == ("", "", [])


class Masked(nn.Module):
    """Takes a mask that may be None, and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor, mask: Tensor | None, factor: float) -> Tensor:
        return self.linear(x if mask is None else x * mask) * factor


def test_arguments_that_are_not_tensors_are_constants_of_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network, x = Masked().eval(), torch.randn(16, 4)
    made = OnnxRuntimeNetwork(QuantizeStatic()(network, [[x, None, 2.0]], tmp_path))
    assert (made(x) - network(x, None, 2.0).detach()).abs().max() < 0.1


def test_an_unknown_calibration_and_unusable_batches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="calibration='Max' is unknown: write one of MinMax, Entropy, Percentile"):
        QuantizeStatic("Max")
    with pytest.raises(ValueError, match="batches is empty"):
        QuantizeStatic()(build(OptionA), [], tmp_path)
    with pytest.raises(ValueError, match="a batch has 'label', but forward of OptionA needs 'x'"):
        QuantizeStatic()(build(OptionA), [{"label": torch.tensor([1])}], tmp_path)
    assert not list(tmp_path.iterdir())
