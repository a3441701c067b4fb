import importlib
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.training.callbacks import QuantizationAwareTraining
from qat.training.lightning.compilation import check_compiler
from qat.training.lightning.private_api import get_compiled_call
from qat.transform.bits import FLOAT, set_bits
from tests.networks import OptionA, build
from tests.training.user_modules import LIGHTNING, Classifier, Data, Net, trainer

pytestmark = LIGHTNING


def gradients(network: nn.Module, call: nn.Module, x: Tensor) -> list[Tensor]:
    network.zero_grad()
    call(x).square().sum().backward()
    return [p.grad.clone() for p in network.parameters() if p.grad is not None]


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 3))


def calibrated(policy: qat.Policy, x: Tensor, kind: Callable[[], nn.Module] = OptionA) -> nn.Module:
    network = qat.prepare(build(kind).train(), policy)
    qat.calibrate(network, [x])
    return network


def assert_same_numbers(network: nn.Module, compiled: nn.Module, x: Tensor) -> None:
    """Outputs, also those of the C kernels, and gradients. The kernels, which keep residuals in one byte, have other ones."""
    with torch.no_grad():
        assert torch.allclose(network(x), compiled(x), atol=1e-5)
    module = importlib.import_module("qat.kernels.fake_quantize")
    with mock.patch.object(module, "uses_native_by_rows", return_value=False):
        eager = gradients(network, network, x)
    assert sum(g.abs().sum() for g in eager) > 0
    for mine, theirs in zip(gradients(network, compiled, x), eager, strict=True):
        assert torch.allclose(mine, theirs, rtol=0.001, atol=0.001 * theirs.abs().max().item())


@pytest.mark.parametrize(
    ("kind", "quantizer", "policy"),
    [
        (two_layers, "LSQ", "w8a8"),
        *(
            pytest.param(OptionA, *case, marks=pytest.mark.slow)
            for case in [
                ("LSQ", "w8a8"),
                ("TQT", "w4a4"),
                ("PACT", "w2a2"),
                ("LSQ", "w4a4"),
                ("LSQ", "w2a2"),
                ("Static", "w8a8"),
            ]
        ),
    ],
)
def test_one_graph_and_the_same_numbers(kind: Callable[[], nn.Module], quantizer: str, policy: str) -> None:
    """With fullgraph, a graph break is an error. The compiler's own arithmetic is not tested here."""
    torch._dynamo.reset()
    x = torch.randn(4, 3, 8, 8)
    network = calibrated(qat.load_policy(policy).with_parts(quantizer, "MinMax"), x, kind)
    assert_same_numbers(network, torch.compile(network, backend="aot_eager", fullgraph=True), x)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch, at a break
@pytest.mark.parametrize(
    "policy",
    [
        qat.load_policy("w4a4").with_parts("LCQ", "MinMax"),
        *(qat.load_policy(name) for name in ("w8_dynamic", "mxfp4", "nvfp4")),
    ],
    ids=lambda policy: policy.name,
)
def test_with_breaks_in_the_graph_the_same_numbers(policy: qat.Policy) -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 3, 8, 8)
    network = calibrated(policy, x)
    assert_same_numbers(network, torch.compile(network, backend="aot_eager"), x)


@pytest.mark.slow
def test_another_width_is_recompiled() -> None:
    torch._dynamo.reset()
    x = torch.randn(4, 3, 8, 8)
    network = calibrated(qat.load_policy("w2a2"), x)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    outputs = []
    for bits in (FLOAT, 4, 3, None):
        set_bits(network, bits)
        qat.calibrate(network, [x])
        assert_same_numbers(network, compiled, x)
        outputs.append(compiled(x))
    assert len({float(output.detach().sum()) for output in outputs}) == 4


def qat_of(compile: bool) -> QuantizationAwareTraining:
    """With slow scales: this network is untrained and tiny, and its scales would diverge."""
    return QuantizationAwareTraining("w8a8", compile=compile, quantizer_lr_ratio=0.01)


@pytest.mark.slow
def test_a_compiled_fit_is_an_eager_fit(tmp_path: Path) -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()  # of other tests
    losses = []
    for compile in (False, True):
        torch.manual_seed(0)
        model, fitting = Classifier(), trainer(tmp_path, callback := qat_of(compile))
        fitting.fit(model, Data())
        losses.append(float(fitting.callback_metrics["train/loss"]))
        assert get_compiled_call(callback.network_of(model)) is None, "after the fit it runs as written"
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 0, "something was compiled"
    assert counters["graph_break"] == {}


def test_a_missing_compiler_is_an_error_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qat.training.lightning.compilation.shutil.which", lambda name: None)
    with pytest.raises(ValueError, match=r"compile=True needs a C\+\+ compiler, and there is none: install g\+\+"):
        trainer(".", QuantizationAwareTraining("w8a8", compile=True)).fit(Classifier(), Data())
    check_compiler("cuda")


def test_compile_must_be_a_bool() -> None:
    with pytest.raises(ValueError, match="compile='maybe' is not possible: write true or false"):
        QuantizationAwareTraining("w8a8", compile="maybe")


def test_names_in_the_state_dict_stay() -> None:
    network = qat.prepare(Net(), "w8a8")
    before = list(network.state_dict())
    network.compile()
    assert list(network.state_dict()) == before
