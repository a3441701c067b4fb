import pytest
import torch
from torch import nn

import qat
from qat.models import resnet_cifar
from qat.ptq import Calibrate, PTQState
from qat.ptq.segment import Segment, block_segments, layer_segments
from qat.ptq.side_by_side import SideBySideRun
from qat.transform import load_policy, quantizers
from tests import networks
from tests.networks import build, images


def calibrated(network: type[nn.Module], policy: str = "w4a4") -> PTQState:
    state = PTQState(build(network), load_policy(policy), list(images(12).split(5)))
    Calibrate("MinMax").apply(state)
    return state


def layers(state: PTQState, segment: Segment) -> list[str]:
    return [
        str(n.target) for n in segment.nodes if n.op == "call_module" and hasattr(module(state, n), "weight_quantizer")
    ]


def module(state: PTQState, node: torch.fx.Node) -> nn.Module:
    return state.network.get_submodule(str(node.target))


def test_blocks_of_a_resnet_are_its_residual_blocks() -> None:
    state = calibrated(lambda: resnet_cifar.ResNetCifar(8))
    found = [layers(state, s) for s in block_segments(state.network, state.graph())]
    blocks = [[f"layer{i}.0.conv1", f"layer{i}.0.conv2"] for i in (1, 2, 3)]
    assert found == [["conv1"], *blocks, ["linear"]]


def test_a_chain_is_cut_behind_every_layer() -> None:
    state = calibrated(networks.Rows)
    assert [layers(state, s) for s in block_segments(state.network, state.graph())] == [["fc1"], ["fc2"], ["fc3"]]


def test_a_chain_of_quantized_weights_is_cut_behind_every_layer_too() -> None:
    """There are no sites between its layers."""
    state = calibrated(networks.Rows, "w4")
    assert [layers(state, s) for s in block_segments(state.network, state.graph())] == [["fc1"], ["fc2"], ["fc3"]]


def test_layers_come_with_their_batchnorm_and_activation() -> None:
    state = calibrated(networks.OptionA)
    found = [[n.name for n in s.nodes] for s in layer_segments(state.network, state.graph())]
    assert found == [["conv1", "bn1", "relu"], ["conv2", "bn2"], ["conv3", "bn3"], ["linear"]]


@pytest.mark.parametrize("network", networks.INTEGER)
def test_every_layer_is_in_one_segment(network: type[nn.Module]) -> None:
    state = calibrated(network)
    every = sorted(n for n, m in state.network.named_modules() if hasattr(m, "weight_quantizer"))
    for find in (layer_segments, block_segments):
        assert sorted({n for s in find(state.network, state.graph()) for n in layers(state, s)}) == every


@pytest.mark.parametrize("network", [networks.OptionA, networks.Rows, networks.Inception])
def test_segments_compute_what_the_walk_computes(network: type[nn.Module]) -> None:
    """Quantized and in float; the run itself ends with what the network returns."""
    state = calibrated(network)
    run = SideBySideRun(state)
    for find in (layer_segments, block_segments):
        segments = {s.nodes[-1]: s for s in find(state.network, run.graph)}
        assert segments
        kept: dict[torch.fx.Node, list[torch.Tensor]] = {}
        for node in (run := SideBySideRun(state)):
            kept.update({s: run.quantized[s] for s in node.all_input_nodes if s in run.quantized.values})
        by_name = {n.name: values for n, values in kept.items()}
        last = [end for end in segments if end.name not in by_name]  # nothing reads it but the caller
        assert len(last) == 1
        by_name[last[0].name] = [state.network(batch) for batch in state.batches]
        for end, segment in segments.items():
            outputs = [segment.extract(state.network)(x.clone()) for x in by_name[segment.start.name]]
            assert all(torch.equal(a, b) for a, b in zip(outputs, by_name[end.name], strict=True))


def test_the_walk_ends_with_the_networks_result() -> None:
    state = calibrated(networks.OptionA)
    original = build(networks.OptionA)
    run = SideBySideRun(state)
    for node in run:
        last, inputs = node, [run.quantized[node.all_input_nodes[0]], run.float[node.all_input_nodes[0]]]
    for network, values, expected in zip(
        (state.network, state.reference), inputs, (state.network, original), strict=True
    ):
        layer = network.get_submodule(str(last.target))
        for x, batch in zip(values, state.batches, strict=True):
            assert torch.equal(layer(x), expected(batch))
    assert set(run.quantized.values) == {last}  # nothing is kept longer than needed


def test_the_walk_takes_batches_as_calibrate_does() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.a(x) + self.b(y)

    x, y, labels = torch.randn(5, 3), torch.randn(5, 2), torch.zeros(5)
    for batch in ((x, y, labels), {"y": y, "x": x}):
        state = PTQState(Two().eval(), load_policy("w8a8", first_last_bits=None), [batch])
        Calibrate("MinMax").apply(state)
        run = SideBySideRun(state)
        nodes = {n.target: run.float[n.all_input_nodes[0]][0] for n in run}
        assert torch.equal(nodes["a"], x)
        assert torch.equal(nodes["b"], y)


def test_the_extracted_module_shares_layers_and_sites() -> None:
    state = calibrated(networks.OptionA)
    segment = block_segments(state.network, state.graph())[1]
    extracted = segment.extract(state.network)
    assert extracted.conv2 is state.network.conv2
    assert set(quantizers(extracted).values()) <= set(quantizers(state.network).values())
    assert qat.inspect(state.network).lines
