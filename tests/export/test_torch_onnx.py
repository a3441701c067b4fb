"""Float operations written by torch.onnx compute in ONNX Runtime what they compute in torch, for any batch size."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import qat
from qat.export.onnx import equivalents, torch_onnx
from qat.export.onnx.torch_exporter import export_with_torch


class Between(nn.Module):
    """An operation between two quantized convolutions."""

    def __init__(self, operation: Callable[[Tensor], Tensor], first: nn.Module | None = None) -> None:
        super().__init__()
        self.first = first or nn.Conv2d(3, 8, 3, padding=1)
        self.operation, self.last = operation, nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operation(F.relu(self.first(x))))


class First(nn.Module):
    """The first of several results."""

    def __init__(self, operation: nn.Module) -> None:
        super().__init__()
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(x)[0]


class Second(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x))).chunk(2, 1)[1]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.attention = nn.Linear(3, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.token, self.last = nn.Parameter(torch.randn(1, 1, 8)), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), self.first(x)], dim=1)
        return self.last(self.attention(x, x, x)[0])[:, 0]


class Recurrent(nn.Module):
    """Results in nested tuples."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.lstm, self.last = nn.Linear(3, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        steps, (hidden, _) = self.lstm(self.first(x))
        return self.last(steps[:, -1]) + self.last(hidden[-1])


class SequenceFirst(nn.Module):
    """Between two reshapes, the batch is part of the second axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        batch, length, _ = x.shape
        heads = x.transpose(0, 1).reshape(length, batch * 2, 4)
        return self.last(heads.transpose(0, 1).reshape(batch, 2, length, 4).transpose(1, 2).reshape(batch, length, 8))


class Words(nn.Module):
    """The inputs are indices."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.linear, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, words: Tensor) -> Tensor:
        x = self.linear(self.norm(self.embedding(words)))
        return self.last((torch.softmax(x @ x.transpose(1, 2), -1) @ x).mean(1))


class Picking(nn.Module):
    """How many results there are depends on values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        return self.last(x)[torch.nonzero(x[:, 0, 0] > -9.0)[:, 0]]


class Filter(nn.Module):
    """Multiplies spectra by complex numbers, one of them stored as pairs, as global filter networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 4)
        self.filter, self.pairs = (
            nn.Parameter(torch.randn(3, 8, dtype=torch.cfloat)),
            nn.Parameter(torch.randn(3, 8, 2)),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        spectrum = torch.fft.rfft(x, dim=1, norm="ortho") * self.filter * torch.view_as_complex(self.pairs)
        return self.last(x + torch.fft.irfft(spectrum, n=x.shape[1], dim=1, norm="ortho"))


class Mixed(nn.Module):
    """Mixes the channels of spectra, as Fourier neural operators do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 4)
        self.weight = nn.Parameter(torch.randn(8, 8, 3, dtype=torch.cfloat))

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.einsum("bti,iot->bto", torch.fft.rfft(self.first(x), dim=1), self.weight)
        return self.last(torch.fft.irfft(spectrum, n=x.shape[1], dim=1))


class Doubled(nn.Module):
    """Its results have double precision, which few kernels of the runtime take."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x))).double()


def turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b * a.sigmoid(), a], 1)


IMAGES, SEQUENCES = (3, 8, 8), (5, 3)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "attention": (Attention, SEQUENCES),
    "recurrent": (Recurrent, SEQUENCES),
    "sequence first": (SequenceFirst, SEQUENCES),
    "words": (Words, ()),
    "picking": (Picking, SEQUENCES),
    "ends in double": (Doubled, SEQUENCES),
    "complex": (Filter, SEQUENCES),
    "chunks": (lambda: Between(turned), IMAGES),
    "one of two results": (lambda: Between(lambda x: F.max_pool2d(x, 2, return_indices=True)[0]), IMAGES),
    "indices of a pool": (lambda: Between(First(nn.MaxPool2d(2, return_indices=True))), IMAGES),
    "dilated pool": (lambda: Between(nn.MaxPool2d(2, 1, dilation=2)), IMAGES),
    "pool with a divisor": (lambda: Between(nn.AvgPool2d(2, padding=1, divisor_override=3)), IMAGES),
    "reflecting": (lambda: Between(nn.Identity(), nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")), IMAGES),
    "resized": (lambda: Between(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear")), IMAGES),
    "normalised": (lambda: Between(nn.GroupNorm(2, 8)), IMAGES),
    "transposed": (lambda: Between(nn.ConvTranspose2d(8, 8, 2, 2)), IMAGES),
    "weighted sum": (lambda: Between(lambda x: torch.add(x, x.flip(2), alpha=0.5)), IMAGES),
    "mean of five axes": (lambda: Between(lambda x: x.unsqueeze(4).mul(0.5).mean((2, 4)).unsqueeze(3)), IMAGES),
    "ends in the second of two": (lambda: Second(), IMAGES),
    "ends in float": (lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Softmax(1)), IMAGES),
    "moved": (lambda: Between(lambda x: F.pixel_unshuffle(F.pixel_shuffle(x.unsqueeze(1), 2), 2).squeeze(1)), IMAGES),
    "viewed": (lambda: Between(lambda x: x.transpose(2, 3).contiguous().view(-1, 8, 4, 16)), IMAGES),
    "picked": (lambda: Between(lambda x: x.transpose(1, 3)[..., 0].unsqueeze(1).expand(-1, 8, -1, -1)), IMAGES),
}


BY_DEFAULT = (
    "viewed", "recurrent", "sequence first", "picking", "chunks", "indices of a pool", "normalised", "picked", "complex",
)  # fmt: skip
"""One network for each kind: nested results, a batch inside another axis, a size that depends on values, several results,
complex numbers."""


def batch(size: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(size)
    if not shape:
        return torch.randint(20, (size, 6), generator=generator)
    return torch.randn(size, *shape, generator=generator)


def written(model: nn.Module, x: Tensor, path: Path, policy: str = "w8a8") -> nn.Module:
    """The integer model, after it was exported."""
    prepared = qat.prepare(model.eval(), policy, x)
    qat.calibrate(prepared, [x])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, x[:2], path)
    return integer


@pytest.mark.parametrize(
    "name", [name if name in BY_DEFAULT else pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS]
)
def test_the_file_computes_what_torch_computes(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    build, shape = NETWORKS[name]
    integer = written(build(), batch(8, shape), tmp_path / "model.onnx")
    check = qat.verify(tmp_path / "model.onnx", integer, [batch(8, shape), batch(3, shape), batch(1, shape)])
    assert check.exact, [site for site in check.sites if site.code_mismatches]
    assert all(len(set(codes.flatten().tolist())) > 1 for codes in integer.codes(batch(8, shape))[1].values())


def test_data_movement_works_on_codes(tmp_path: Path) -> None:
    model = Between(lambda x: F.pixel_shuffle(x.unsqueeze(1).squeeze(1).flip(2), 1))
    integer = written(model, batch(4, IMAGES), tmp_path / "model.onnx")
    assert qat.inspect(qat.prepare(model, "w8a8")).float_edges == []
    check = qat.verify(tmp_path / "model.onnx", integer, [batch(3, IMAGES)])
    assert check.exact
    assert check.operators["QLinearConv"] == 1  # the last one returns floats
    assert check.operators["DequantizeLinear"] == 3  # its input, weight and bias


@pytest.mark.parametrize(
    "name", ["convnext", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vision_transformer", "swin"))]
)
@pytest.mark.filterwarnings("ignore:SwinTransformer branches on self.training")  # the dropout of its attention, 0 here
def test_torchvisions_transformers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = torchvision.models
    stages = [models.convnext.CNBlockConfig(8, 16, 1), models.convnext.CNBlockConfig(16, None, 1)]
    model, size = {
        "vision_transformer": lambda: (models.VisionTransformer(16, 8, 1, 2, 16, 32, num_classes=5), 16),
        "convnext": lambda: (models.ConvNeXt(stages, num_classes=5), 32),
        "swin": lambda: (models.SwinTransformer([4, 4], 8, [1, 1], [1, 2], [2, 2], num_classes=5), 32),
    }[name]()
    for parameter in model.parameters():  # some heads begin with zeros
        nn.init.normal_(parameter, std=0.1)
    integer = written(model, batch(4, (3, size, size)), tmp_path / "model.onnx")
    check = qat.verify(tmp_path / "model.onnx", integer, [batch(3, (3, size, size))])
    assert check.code_mismatches <= 1e-4 * check.codes_compared  # float sums of another order, before rounding


def test_an_operation_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"special_bessel_j0 \(.*\) stays in float and has no ONNX form: quantize"):
        written(Between(torch.special.bessel_j0), batch(4, IMAGES), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_operation_that_cannot_be_written_is_named_where_there_are_two(tmp_path: Path) -> None:
    """Both are one template, which is no more than one operation."""
    model = nn.Sequential(
        Between(torch.special.bessel_j0), nn.ReLU(), nn.Conv2d(4, 3, 1), Between(torch.special.bessel_j0)
    )
    with pytest.raises(ValueError, match=r"special_bessel_j0 \(.*\) stays in float and has no ONNX form: quantize"):
        written(model, batch(4, IMAGES), tmp_path / "model.onnx")


def test_an_operation_on_complex_numbers_is_named_at_once(tmp_path: Path) -> None:
    """Operations cannot be written one by one between which there are complex numbers."""
    with pytest.raises(
        ValueError, match=r"^einsum of complex numbers \(.*\) has no ONNX form: compute it with their real"
    ):
        written(Mixed(), batch(4, SEQUENCES), tmp_path / "model.onnx")


def test_an_operation_that_torch_writes_wrong_is_refused(tmp_path: Path) -> None:
    """torch.onnx omits the divisor."""
    pool = nn.AvgPool3d((1, 2, 2), divisor_override=3)
    with pytest.raises(ValueError, match=r"AvgPool3d \(operation\) stays in float and has no ONNX form"):
        written(Between(pool), batch(4, IMAGES), tmp_path / "model.onnx")


def test_all_subgraphs_take_one_call_and_equal_ones_one_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their weights and values differ, and each is checked with its own."""

    class Blocks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList(nn.GroupNorm(2, 8) for _ in range(3))
            self.convs = nn.ModuleList(nn.Conv2d(8 if i else 3, 8, 3, padding=1) for i in range(4))
            for norm in self.norms:
                nn.init.normal_(norm.weight)

        def forward(self, x: Tensor) -> Tensor:
            x = self.convs[0](x)
            for conv, norm in zip(self.convs[1:], self.norms, strict=True):
                x = conv(F.mish(norm(x)))
            return x

    export, exports = torch_onnx._torch_export, []
    monkeypatch.setattr(torch_onnx, "_torch_export", lambda given: exports.append(given) or export(given))
    integer = written(Blocks(), batch(4, IMAGES), tmp_path / "model.onnx")
    (templates,) = exports
    assert all(len(template.instances) == 3 for template in templates)
    assert qat.verify(tmp_path / "model.onnx", integer, [batch(3, IMAGES)]).exact


class Bags(nn.Module):
    """Weights that are stored as codes and read in float."""

    def __init__(self, recurrent: bool) -> None:
        super().__init__()
        self.embedding, self.bag = nn.Embedding(20, 6), nn.EmbeddingBag(20, 6, mode="max", padding_idx=3)
        self.between = nn.RNN(6, 6, batch_first=True) if recurrent else nn.Identity()
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        between = self.between(self.embedding(x))
        between = between[0] if isinstance(self.between, nn.RNN) else between
        return self.head(self.bag(x) + between.mean(1))


@pytest.mark.parametrize("recurrent", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_stored_as_codes_takes_one_call_and_verify_none(
    recurrent: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export, exports = torch_onnx._torch_export, []
    monkeypatch.setattr(torch_onnx, "_torch_export", lambda given: exports.append(given) or export(given))
    x = torch.randint(20, (4, 3))
    integer = written(Bags(recurrent), x, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [x[:3]]).exact
    assert len(exports) == 1
    for rnn in (m for m in integer.modules() if isinstance(m, nn.RNN)):  # whose bias is a constant of the export
        with torch.no_grad():
            rnn.bias_hh_l0.add_(1)
        assert qat.verify(tmp_path / "model.onnx", integer, [x[:3]]).stored


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3, -1])
def test_bags_of_embeddings_in_writable_functions(mode: str, padding_idx: int | None) -> None:
    torch.manual_seed(0)
    weight, indices = torch.randn(9, 5), torch.tensor([3, 8, 1, 3, 3, 8, 0, 2])
    options: dict[str, Any] = {"mode": mode, "padding_idx": padding_idx}
    cases: list[tuple[Tensor, dict[str, Any]]] = [
        (indices.reshape(2, 4), options),
        (indices, {**options, "offsets": torch.tensor([0, 3, 3, 5])}),
        (indices, {**options, "offsets": torch.tensor([0, 2, 8]), "include_last_offset": True}),
    ]
    if mode == "sum":
        cases += [(indices.reshape(4, 2), {**options, "per_sample_weights": torch.randn(4, 2)})]
    for x, given in cases:
        torch.testing.assert_close(equivalents.embedding_bag(x, weight, **given), F.embedding_bag(x, weight, **given))


def test_operations_are_tried_with_the_examples_own_values(tmp_path: Path) -> None:
    """Negative numbers, of which there are none behind a ReLU, would make NaN; here one sample makes infinity."""
    model = Between(lambda x: torch.rsqrt(x.sum((2, 3), keepdim=True)).sqrt().log1p() + x)
    integer = written(model, batch(4, IMAGES), tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [batch(3, IMAGES)]).exact


def test_what_several_layers_share_makes_no_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rotary positions, as in Llama: what is behind each layer reads one float tensor, but is not a subgraph with the rest."""

    class Rotary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            turn = torch.softmax(x, -1)
            for layer in self.layers:
                x = torch.log_softmax(layer(x), -1) - turn
            return x

    export, exports = torch_onnx._torch_export, []
    monkeypatch.setattr(torch_onnx, "_torch_export", lambda given: exports.append(given) or export(given))
    x = batch(4, (5, 6))
    integer = written(Rotary(), x, tmp_path / "model.onnx")
    assert qat.verify(tmp_path / "model.onnx", integer, [batch(3, (5, 6))]).exact
    (templates,) = exports
    assert sorted(len(i.subgraph.nodes) for t in templates for i in t.instances) == [2, 2, 3]


class Chooses(nn.Module):
    """Has graphs inside of its graph, which torch annotates, too."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: F.gelu(x) + 1, lambda x: F.silu(x) - 1, (x,))


def test_files_say_nothing_of_the_code_they_come_from() -> None:
    file = export_with_torch(Chooses(), (torch.randn(2, 3),), opset_version=18)
    assert {node.op_type for node in file.graph.node} >= {"If"}
    content = file.SerializeToString()
    assert Path(__file__).name.encode() not in content
    assert b"pkg.torch" not in content
