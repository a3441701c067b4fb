"""Networks that calculate a loss in forward: it is trained with, and is not part of the artefact."""

from pathlib import Path

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat


class WithLoss(nn.Module):
    """A loss if there are labels; `**options` keeps torch.fx away, as in Hugging Face's networks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.a, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, ids: Tensor, labels: Tensor | None = None, **options: object) -> dict[str, Tensor]:
        logits = self.head(F.relu(self.a(self.embed(ids))))
        found = {"logits": logits}
        if labels is not None:
            shifted = logits[:, :-1].contiguous().view(-1, 5).float()
            found = {"loss": F.cross_entropy(shifted, labels[:, 1:].reshape(-1)), "logits": logits}
        return found


BATCH = {
    "ids": torch.randint(11, (8, 6), generator=torch.Generator().manual_seed(0)),
    "labels": torch.randint(5, (8, 6), generator=torch.Generator().manual_seed(1)),
}


def test_the_artefact_is_that_of_the_network_without_labels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = WithLoss().eval()
    prepared = qat.prepare(model, "w8a8", BATCH)
    plain = qat.prepare(model, "w8a8", {"ids": BATCH["ids"]})
    for network in (prepared, plain):
        qat.calibrate(network, [BATCH if network is prepared else {"ids": BATCH["ids"]}])
    assert prepared.sites.keys() == plain.sites.keys()  # the loss makes no site
    assert any("labels: for training alone" in note for note in qat.inspect(prepared).notes)
    with_loss = prepared(**BATCH)
    assert torch.equal(prepared(ids=BATCH["ids"])["logits"], with_loss["logits"])  # quantized with labels and without
    assert torch.equal(with_loss["logits"], plain(ids=BATCH["ids"])["logits"])
    with_loss["loss"].backward()
    assert prepared.a.weight.grad is not None
    integer = qat.convert(prepared)
    path = tmp_path / "model.onnx"
    qat.export_onnx(integer, BATCH, path)
    found = qat.verify(path, integer, [BATCH], prepared)
    assert found.exact
    assert not found.alarm
    assert [i.name for i in onnx.load(path).graph.input] == ["ids"]


def test_a_network_that_returns_a_loss_alone_says_what_to_change() -> None:
    class LossAlone(WithLoss):
        def forward(self, ids: Tensor, labels: Tensor | None = None, **options: object) -> dict[str, Tensor]:
            return {"loss": super().forward(ids, labels)["loss"]}

    prepared = qat.prepare(LossAlone(), "w8a8", BATCH)
    assert any("nothing without labels: give it a default" in note for note in qat.inspect(prepared).notes)


@pytest.mark.slow
def test_hugging_face_calls_with_labels_give_the_file_without(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, num_labels=3
    )
    torch.manual_seed(0)
    model = transformers.BertForSequenceClassification(config).eval()
    batch = {
        "input_ids": torch.randint(40, (4, 7)),
        "attention_mask": torch.ones(4, 7).long(),
        "labels": torch.arange(4) % 3,
    }
    prepared = qat.prepare(model, "w8a8", batch)
    qat.calibrate(prepared, [batch])
    integer = qat.convert(prepared)
    qat.export_onnx(integer, batch, tmp_path / "bert.onnx")
    assert qat.verify(tmp_path / "bert.onnx", integer, [batch], prepared).exact
    assert [i.name for i in onnx.load(tmp_path / "bert.onnx").graph.input] == ["input_ids", "attention_mask"]


class Traceable(WithLoss):
    """torch.fx traces it, with labels that are required from then on."""

    def forward(self, ids: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        return super().forward(ids, labels)


def test_labels_stay_optional_where_torch_fx_would_require_them() -> None:
    torch.manual_seed(0)
    prepared = qat.prepare(Traceable().eval(), "w8a8", BATCH)
    qat.calibrate(prepared, [BATCH])
    alone = prepared.eval()(BATCH["ids"])["logits"]
    assert torch.equal(alone, prepared(**BATCH)["logits"])
    assert torch.equal(alone, prepared(ids=BATCH["ids"])["logits"])
    assert list(qat.convert(prepared)(BATCH["ids"])) == ["logits"]


def test_sizes_that_labels_share_with_inputs_need_no_labels() -> None:
    """torch.export reads the size of the batch off the labels of this network."""
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_labels=3, **size)
    torch.manual_seed(0)
    batch = {"pixel_values": torch.randn(6, 3, 8, 8), "labels": torch.arange(6) % 3}
    prepared = qat.prepare(transformers.ViTForImageClassification(config).eval(), "w8a8", batch)
    qat.calibrate(prepared, [batch])
    expected = prepared.eval()(**batch).logits
    assert torch.equal(prepared(pixel_values=batch["pixel_values"]).logits, expected)
    integer = qat.convert(prepared)
    for n in (6, 2):
        logits = integer(pixel_values=batch["pixel_values"][:n]).logits  # without the loss
        torch.testing.assert_close(logits, expected[:n], atol=0.05, rtol=0)


def test_labels_that_are_the_input_are_an_argument_of_their_own() -> None:
    """As language models are called: model(input_ids=ids, labels=ids)."""
    torch.manual_seed(0)
    ids, others = (torch.randint(5, (4, 6)) for _ in range(2))
    model = WithLoss().eval()
    prepared = qat.prepare(model, "w8a8", {"ids": ids, "labels": ids})
    qat.calibrate(prepared, [{"ids": ids, "labels": ids}])
    expected = qat.prepare(model, "w8a8", {"ids": ids, "labels": others})
    qat.calibrate(expected, [{"ids": ids, "labels": others}])
    for call in ({"ids": others, "labels": ids}, {"ids": ids, "labels": others}, {"ids": others}):
        ours, wanted = prepared.eval()(**call), expected.eval()(**call)
        assert ours.keys() == wanted.keys()
        assert all(torch.equal(ours[name], wanted[name]) for name in wanted)
    assert torch.equal(qat.convert(prepared)(ids=others)["logits"], qat.convert(expected)(ids=others)["logits"])
