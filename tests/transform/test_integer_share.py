"""How much of a prepared model is integer: counted by hand, compared with what `qat.inspect` says."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.integer.layers import IntegerLayer
from tests.networks import OptionA


@torch.library.custom_op("qat_tests::grouped_mm_fallback", mutates_args=())
def grouped_mm_fallback(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    starts = [0, *ends.tolist()[:-1]]
    return torch.cat([x[a:b] @ w for a, b, w in zip(starts, ends.tolist(), weights, strict=True)])


class Experts(nn.Module):
    """A linear layer, and experts in float as those of transformers: an operation of its own, with a matrix for each."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.experts = nn.Linear(4, 6), nn.Parameter(torch.randn(2, 6, 5))
        self.register_buffer("ends", torch.tensor([3, 8]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.qat_tests.grouped_mm_fallback(self.fc(x), self.experts, self.ends)


def test_experts_in_float_count() -> None:
    x = torch.randn(8, 4)
    prepared = qat.prepare(Experts(), "w8a8", x)
    with pytest.warns(UserWarning, match="only 44% of the multiply-adds are in integers"):
        share = qat.inspect(prepared).share
    assert share is not None
    assert share.multiply_adds == pytest.approx(4 * 6 / (4 * 6 + 6 * 5))


class Mixed(nn.Module):
    """A convolution, one that pads by reflection, an LSTM and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.reflected = nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect")
        self.lstm = nn.LSTM(4, 4, batch_first=True)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reflected(F.relu(self.conv(x))).flatten(2).transpose(1, 2)
        return self.fc(self.lstm(x)[0])


IMAGE = torch.randn(2, 2, 4, 4, generator=torch.Generator().manual_seed(0))
GROUPS = {"granularity": "per_group", "group_size": 3}
COUNTS = {  # per sample, 16 pixels or steps
    "conv": 16 * 4 * 2 * 9,
    "reflected": 16 * 4 * 4 * 9,
    "lstm": 16 * (4 * 16 + 4 * 16),
    "fc": 16 * 4 * 3,
}


def test_the_share_of_multiply_adds_is_that_counted_by_hand() -> None:
    prepared = qat.prepare(Mixed(), "w8a8", IMAGE)
    with pytest.warns(UserWarning, match="only 64% of the multiply-adds are in integers"):
        share = qat.inspect(prepared).share
    assert share is not None
    assert share.multiply_adds == pytest.approx(1 - COUNTS["lstm"] / sum(COUNTS.values()))
    assert "lstm (LSTM has no integer form)" in share.warning


def test_calibration_counts_without_an_example_and_changes_no_random_number() -> None:
    prepared = qat.prepare(Mixed(), "w8a8")
    assert "not counted yet" in str(qat.inspect(prepared))
    state = torch.get_rng_state()
    qat.calibrate(prepared, [IMAGE])
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.warns(UserWarning, match="multiply-adds"):
        assert "64.0% of multiply-adds" in str(qat.inspect(prepared))


@pytest.mark.parametrize(
    ("rules", "line"),
    [
        ({"fc": {"match": "fc", "weight": {"bits": 8}, "activation": {"bits": 8}}}, "rules: {more: {match: a, weight"),
        ({"all": {"match": "*", "weight": {"bits": 8}}, "fc": {"match": "fc", "activation": {"bits": 8}}}, "input has no rule"),
        (
            {"all": {"match": "*", "weight": {"bits": 4, **GROUPS}, "activation": {"bits": 8}}},
            "weight: {granularity: per_channel}",
        ),
    ],
)  # fmt: skip
def test_the_warning_names_the_line_of_policy_that_mends_it(rules: dict[str, object], line: str) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.fc = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.a(x))

    prepared = qat.prepare(Two(), qat.load_policy({"rules": rules}), torch.randn(4, 6))
    with pytest.warns(UserWarning, match="in integers") as caught:
        qat.inspect(prepared)
    assert line in str(caught[0].message)


def test_weights_alone_are_no_broken_promise() -> None:
    prepared = qat.prepare(Mixed(), "w8", IMAGE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        share = qat.inspect(prepared).share
    assert share is not None
    assert (share.multiply_adds, share.weights) == (0.0, 1.0)


def test_layer_by_layer_computes_in_float_and_says_why() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x) if x.sum() > 0 else self.fc(-x)

    prepared = qat.prepare(Branch(), "w8a8", torch.ones(2, 4))
    with pytest.warns(UserWarning, match="everything \\(Branch cannot be traced"):
        text = str(qat.inspect(prepared))
    assert "captured layer by layer, because Branch cannot be traced" in text
    assert "in integers: 100.0% of weights, 0.0% of multiply-adds" in text


def test_what_counts_as_integer_is_an_integer_module_after_convert() -> None:
    model = OptionA().eval()
    prepared = qat.prepare(model, "w8a8", torch.randn(2, 3, 8, 8))
    qat.calibrate(prepared, [torch.randn(2, 3, 8, 8)])
    share = qat.inspect(prepared).share
    assert share is not None
    assert (share.multiply_adds, share.weights, share.warning) == (1.0, 1.0, "")
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert sum(isinstance(m, IntegerLayer) for m in qat.convert(prepared).modules()) == len(layers)
