"""Tensors of which calibration sees nothing but zeros: heads, gates and residual branches that start as nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat import Policy, Rule, TensorRule
from qat.transform import quantizers
from tests.quantizers.catalogue import PARTS, WEIGHTS, Case

pytestmark = pytest.mark.filterwarnings("ignore:.*saw nothing to represent but zeros")


class Branches(nn.Module):
    """A residual branch whose last layer is all zeros, and a head of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.last = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 4)
        for layer in (self.last, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(x + self.last(F.relu(self.inner(x))))


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(64, 6)
    return x, x[:, :4].argmax(1)


def loss_after(network: nn.Module, steps: int) -> float:
    x, labels = data()
    optimizer = torch.optim.Adam(network.train().parameters(), lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("case", WEIGHTS, ids=str)
def test_a_head_of_zeros_learns_with_every_quantizer_of_weights(case: Case) -> None:
    weight = TensorRule(case.bits, quantizer=PARTS[case.name], granularity="per_channel")
    x, _ = data()
    prepared = qat.prepare(Branches(), Policy({"all": Rule("head", weight=weight, activation=None)}), x)
    qat.calibrate(prepared, [x])
    loss_after(prepared, 20)
    weight, quantized = (
        w.flatten() for w in (prepared.head.weight, prepared.head.weight_quantizer(prepared.head.weight))
    )
    assert F.cosine_similarity(weight, quantized, dim=0) > 0.8


@pytest.mark.parametrize("policy", ["w8a8", "w4a4", "w2a2"])
def test_branches_of_zeros_learn_as_in_float(policy: str) -> None:
    torch.manual_seed(0)
    model, (x, _) = Branches(), data()
    prepared = qat.prepare(model, policy, x)
    qat.calibrate(prepared, [x])
    assert prepared.sites.last.qparams().scale.max() < 0.1
    assert loss_after(prepared, 40) < loss_after(model, 40) + 0.15
    assert prepared.last.weight_quantizer.quantize(prepared.last.weight).any()


LAYERS = {
    "Linear": (lambda: nn.Linear(25, 3), 25),
    "Conv2d": (lambda: nn.Conv2d(6, 4, 3, groups=2), 27),
    "ConvTranspose2d": (lambda: nn.ConvTranspose2d(4, 6, 3), 36),
    "GRU": (lambda: nn.GRU(16, 16, batch_first=True), 16),
}
INPUTS = {"Linear": (4, 25), "Conv2d": (4, 6, 5, 5), "ConvTranspose2d": (4, 4, 5, 5), "GRU": (4, 3, 16)}


@pytest.mark.parametrize("granularity", ["per_tensor", "per_channel"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_weight_of_zeros_begins_with_the_range_of_an_initialized_one(layer: str, granularity: str) -> None:
    make, fan_in = LAYERS[layer]
    model, x = nn.Sequential(make()), torch.randn(INPUTS[layer])
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    weight = TensorRule(4, granularity=granularity, quantizer="LSQ")
    prepared = qat.prepare(model, Policy({"all": Rule("*", weight=weight, activation=None)}), x)
    qat.calibrate(prepared, [x])
    weights = [q for q in quantizers(prepared).values() if q.is_weight]
    assert weights
    for quantizer in weights:
        if granularity == "per_channel" or layer != "ConvTranspose2d":
            expected = torch.full_like(quantizer.qparams().scale, fan_in**-0.5 / 7)
            torch.testing.assert_close(quantizer.qparams().scale, expected)


def test_an_activation_of_zeros_begins_with_the_usual_range_of_the_others() -> None:
    x, _ = data()
    model = Branches()
    nn.init.normal_(model.head.weight)
    prepared = qat.prepare(model, "w8a8", x)
    with pytest.warns(UserWarning, match="last saw nothing to represent but zeros, so the first range is a guess"):
        qat.calibrate(prepared, [x])
    scales = {name: q.qparams().scale.item() for name, q in prepared.sites.items()}
    ends = [
        scales[name] * max(q.spec.grid.qmax, -q.spec.grid.qmin) for name, q in prepared.sites.items() if name != "last"
    ]
    assert scales["last"] * 127 == pytest.approx(torch.tensor(ends).median().item())


def test_zeros_alone_have_the_range_of_one() -> None:
    prepared = qat.prepare(nn.Sequential(nn.Linear(4, 4)), "w8a8", torch.randn(2, 4))
    with pytest.warns(UserWarning, match="guess"):
        qat.calibrate(prepared, [torch.zeros(2, 4)])
    assert [q.qparams().scale.item() for q in prepared.sites.values()] == [pytest.approx(1 / 127)]


@pytest.mark.parametrize("policy", ["w8a8", "w2a2"])
def test_a_bias_behind_weights_of_zeros_is_exact(policy: str) -> None:
    model, (x, _) = Branches(), data()
    nn.init.uniform_(model.head.bias, -1e-6, 1e-6)
    prepared = qat.prepare(model, policy, x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared.eval())
    torch.testing.assert_close(integer(x), model.head.bias.expand(64, 4), rtol=1e-6, atol=0)
