"""Integer models of networks of transformers: called with the same batches, they return the same classes."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch

import qat
from tests.hf.tiny import bert, t5, words

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'qat-lightning[hf]'")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*LeafSpec"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("labels", [False, True], ids=["plain example", "example with labels"])
def test_it_returns_what_the_network_returns_and_ignores_labels(labels: bool, tmp_path: Path) -> None:
    batch, answers = words(), words(labels=True)["labels"]
    prepared = qat.prepare(bert(), "transformer_w8a8", batch | ({"labels": answers} if labels else {}))
    qat.calibrate(prepared, [batch])
    integer = qat.convert(prepared)
    with torch.no_grad():
        found, expected = integer(**batch), prepared(**batch)
    assert type(found) is type(expected)
    assert found.keys() == expected.keys()
    assert torch.equal(found[0], found.logits)
    if labels:
        assert torch.equal(integer(**batch, labels=answers).logits, found.logits)
    written = io.BytesIO()
    torch.save(integer, written)
    written.seek(0)
    again = torch.load(written, weights_only=False)
    assert torch.equal(again(**batch).logits, found.logits)
    packed = qat.load_quantized(qat.save_quantized(integer, tmp_path))
    assert type(packed(**batch)) is type(found)
    assert torch.equal(packed(**batch, **({"labels": answers} if labels else {})).logits, found.logits)


@pytest.mark.slow
def test_a_decoder_that_is_fed_with_labels_needs_its_own_input() -> None:
    """The decoder would be a part of the loss, and convert would leave it out."""
    model = t5()
    batch = {"input_ids": torch.randint(1, 64, (2, 7)), "labels": torch.randint(1, 64, (2, 5))}
    with pytest.raises(
        ValueError, match=r"feeds labels to 'shared', .*: add decoder_input_ids, .*DataCollatorForSeq2Seq"
    ):
        qat.prepare(model, "transformer_w8a8", batch)
    batch["decoder_input_ids"] = model.prepare_decoder_input_ids_from_labels(batch["labels"])
    prepared = qat.prepare(model, "transformer_w8a8", batch)
    qat.calibrate(prepared, [batch])
    assert qat.inspect(prepared).share.multiply_adds > 0.95
    assert qat.convert(prepared)(**batch).logits.shape == (2, 5, 64)
