"""Networks that torch.fx does not capture: with the callback they have a graph, a file, and checkpoints that fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from qat.torch_private import tree_leaves
from qat.training.callbacks import ExportONNX, QuantizationAwareTraining
from qat.transform import prepare_
from qat.transform.record import capture_of
from tests.training.attention_modules import AttendingModule, NamedModule, Sentences
from tests.training.user_modules import LIGHTNING, trainer

pytestmark = [*LIGHTNING, pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*LeafSpec")]


def inputs(module: AttendingModule) -> tuple[tuple[Any, ...], dict[str, Tensor]]:
    data = Sentences(images=True)
    return ((), {"ids": data.ids, "mask": data.mask}) if isinstance(module, NamedModule) else ((data.pixels,), {})


def outputs(network: nn.Module, module: AttendingModule) -> list[Tensor]:
    args, kwargs = inputs(module)
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(network.eval()(*args, **kwargs)) if isinstance(leaf, Tensor)]


def assert_equal(found: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


class SaveAt(L.Callback):
    def __init__(self, path: Path, step: int) -> None:
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def fit(folder: Path, module: AttendingModule, *callbacks: L.Callback) -> L.Trainer:
    L.seed_everything(7)
    fitting = trainer(folder, QuantizationAwareTraining("w8a8", calibration_images=16), *callbacks, max_epochs=2)
    fitting.fit(module)
    return fitting


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AttendingModule, NamedModule])
def test_a_checkpoint_fits_the_graph_that_a_batch_gave_and_is_resumed(
    tmp_path: Path, kind: type[AttendingModule]
) -> None:
    module, path = kind(), tmp_path / "middle.ckpt"
    fit(tmp_path, module, SaveAt(path, 3)).save_checkpoint(tmp_path / "end.ckpt")
    capture = capture_of(module.net)
    assert capture is not None
    assert capture["way"] == "torch.export"
    assert capture == torch.load(path, weights_only=True)["qat"]["capture"]

    loaded = qat.load_checkpoint(tmp_path / "end.ckpt", kind)
    assert_equal(outputs(loaded.net, module), outputs(module.net, module))

    resumed = kind()
    trainer(tmp_path, QuantizationAwareTraining("w8a8"), max_epochs=2).fit(resumed, ckpt_path=path)
    for name, value in module.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [AttendingModule, NamedModule])
def test_a_fit_exports_an_exact_file(tmp_path: Path, kind: type[AttendingModule]) -> None:
    export = ExportONNX(tmp_path / "model.onnx")
    fit(tmp_path, kind(), export)
    assert export.artefact is not None
    assert export.artefact.verification.exact


def test_a_checkpoint_without_example_inputs_is_prepared_as_it_was(tmp_path: Path) -> None:
    """The callback once prepared without example inputs: such a checkpoint has no entry for them."""
    old = NamedModule()
    prepare_(old.net, qat.load_policy("w8a8"))
    fit(tmp_path, old).save_checkpoint(tmp_path / "new.ckpt")
    content = torch.load(tmp_path / "new.ckpt", weights_only=True)
    assert content["qat"]["capture"] == {"way": "layer by layer", "example": None}
    del content["qat"]["capture"]
    torch.save(content, tmp_path / "old.ckpt")
    expected = outputs(old.net, old)
    assert_equal(outputs(qat.load_checkpoint(tmp_path / "old.ckpt", NamedModule).net, old), expected)

    tested = NamedModule()
    trainer(tmp_path, QuantizationAwareTraining("w8a8")).test(tested, ckpt_path=tmp_path / "old.ckpt", verbose=False)
    assert_equal(outputs(tested.net, old), expected)


def test_a_step_that_calls_the_network_otherwise_than_a_batch_is_refused(tmp_path: Path) -> None:
    class WithoutMask(NamedModule):
        def loss(self, batch: Any) -> Tensor:
            return F.cross_entropy(self.net(batch["ids"])["logits"], batch["label"])

    with pytest.raises(ValueError, match=r"called the network with \(Tensor\), and its graph was captured with other"):
        fit(tmp_path, WithoutMask())


@pytest.mark.slow
def test_a_network_of_hugging_face_is_fitted_and_loaded(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    configuration = transformers.BertConfig(vocab_size=20, num_labels=4, **size)

    class Bert(NamedModule):
        def __init__(self) -> None:
            super().__init__(transformers.BertForSequenceClassification(configuration))

        def loss(self, batch: Any) -> Tensor:
            return F.cross_entropy(
                self.net(input_ids=batch["ids"], attention_mask=batch["mask"]).logits, batch["label"]
            )

    def named(batch: Any) -> dict[str, Tensor]:
        return {"input_ids": batch["ids"], "attention_mask": batch["mask"]}

    module, data = Bert(), Sentences(images=False)
    fitting = trainer(tmp_path, QuantizationAwareTraining("w8a8", inputs=named, quantizer_lr_ratio=0.01))
    fitting.fit(module)
    fitting.save_checkpoint(tmp_path / "bert.ckpt")
    loaded = qat.load_checkpoint(tmp_path / "bert.ckpt", Bert)
    with torch.no_grad():
        found, expected = (m.eval().net(input_ids=data.ids, attention_mask=data.mask).logits for m in (loaded, module))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
