"""A fit that starts where post-training quantization ended."""

import copy
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from people import LIGHTNING, Classifier, Data, Net, images, trainer
from torch import Tensor

import qat
from qat.ptq import AdaRound, Calibrate, CrossLayerEqualization, FoldBatchNorm, adopt, apply_passes
from qat.training.callbacks import QuantizationAwareTraining

pytestmark = LIGHTNING

INPUTS = images(32).tensors[0]


def passes() -> list[Any]:
    return [CrossLayerEqualization(), Calibrate("MinMax"), AdaRound(20, 16)]


def start(**options: Any) -> QuantizationAwareTraining:
    return QuantizationAwareTraining("w3a4", batches=[INPUTS], quantizer_lr_ratio=0.01, **options)


class First(L.Callback):
    """Logits of the network before the first step."""

    logits: Tensor

    def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
        with torch.no_grad():
            self.logits = copy.deepcopy(module).eval()(INPUTS)


def test_the_first_step_is_made_by_what_the_passes_reached(tmp_path: Path) -> None:
    module, first, qat_callback = Classifier(), First(), start(start_from=passes())
    expected = apply_passes(passes(), copy.deepcopy(module.net), "w3a4", [INPUTS])(INPUTS)
    calibrated = qat.prepare(copy.deepcopy(module.net).eval(), "w3a4")
    qat.calibrate(calibrated, [INPUTS])
    parameters = {name: id(p) for name, p in module.named_parameters()}
    trainer(tmp_path, first, qat_callback).fit(module, Data())
    assert torch.equal(first.logits, expected)
    assert not torch.allclose(first.logits, calibrated(INPUTS))
    assert parameters.items() <= {name: id(p) for name, p in module.named_parameters()}.items()


def test_it_learns_on_from_there(tmp_path: Path) -> None:
    module, first = Classifier(), First()
    trainer(tmp_path, first, start(start_from=passes())).fit(module, Data())
    after = module.eval()(INPUTS)
    assert not torch.allclose(after, first.logits)


def test_an_average_starts_there_too(tmp_path: Path) -> None:
    average = EMAWeightAveraging(decay=1.0)  # which keeps its first value
    module, first = Classifier(), First()
    trainer(tmp_path, average, first, start(start_from=passes())).fit(module, Data())
    assert torch.equal(module.eval()(INPUTS), first.logits)


def test_a_second_fit_and_a_restored_checkpoint_go_on(tmp_path: Path) -> None:
    module = Classifier()
    trainer(tmp_path, start(start_from=passes())).fit(module, Data())
    before, first = module.eval()(INPUTS), First()
    trainer(tmp_path, first, start(start_from=passes())).fit(module, Data())
    assert torch.equal(first.logits, before)


def test_levels_of_their_own_are_calibrated_on_the_new_weights() -> None:
    policy = {"preset": "w3a4", "weight": {"quantizer": "KMeans"}, "first_last_bits": None}
    network = qat.prepare(Net(), policy)
    adopt(network, apply_passes(passes(), Net(), policy, [INPUTS]))
    waiting = {name for name, q in qat.transform.quantizers(network).items() if not q.ready}
    assert waiting == {name for name in qat.transform.quantizers(network) if name.endswith("weight_quantizer")}


def test_what_is_impossible_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="start_from: a list of passes has Calibrate once, this one 0 times"):
        start(start_from=[AdaRound()])
    with pytest.raises(ValueError, match="leave FoldBatchNorm out"):
        fold = [FoldBatchNorm(), Calibrate("MinMax")]
        trainer(tmp_path, start(start_from=fold)).fit(Classifier(), Data())
    prepared = Classifier()
    prepared.net = qat.prepare(prepared.net, "w3a4")
    with pytest.raises(ValueError, match="start_from needs the float network"):
        trainer(tmp_path, start(start_from=passes())).fit(prepared, Data())
