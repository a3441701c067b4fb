"""Pruned weights are zero everywhere: in forward, after each step, in checkpoints, averages and exported integers."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import ModelCheckpoint
from onnx import numpy_helper
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, IterableDataset

import qat
from qat.integer import stored_bytes
from qat.sparsity import cubic_sparsity
from qat.training.callbacks import (
    ExportONNX,
    OscillationControl,
    ProgressiveBits,
    Pruning,
    QuantizationAwareTraining,
    Report,
)
from tests.training.checkpoint.interrupted_fits import CheckpointInEveryHook, Fit, differences, loader_with_generator
from tests.training.user_modules import CLASSES, LIGHTNING, Classifier, Data, Net, images, trainer

pytestmark = LIGHTNING


def quantization(policy: Any = "w4a8") -> QuantizationAwareTraining:
    return QuantizationAwareTraining(policy, quantizer_lr_ratio=0.01, batches=[images(32).tensors[0]])


class Watch(L.Callback):
    """The share of zeros in the second convolution after each step, and its mask."""

    def __init__(self) -> None:
        self.zeros: list[float] = []
        self.weights: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *_: Any) -> None:
        weight = module.net.conv2.weight.detach()
        self.zeros.append(float((weight == 0).float().mean()))
        self.weights.append(weight.clone())


def stored_codes(path: Path, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """The integer weight of this shape in an ONNX file."""
    found = [numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer if tuple(i.dims) == shape]
    (codes,) = (array for array in found if array.dtype.kind in "iuV" or array.dtype.name.startswith("int"))
    return codes.astype(np.int64)


def test_zeros_follow_the_cube_and_end_in_the_file(tmp_path: Path) -> None:
    watch, pruning = Watch(), Pruning(0.6, end=0.5, every=1)
    report = Report(folder=tmp_path, metric="test/top1")
    callbacks = [pruning, watch, quantization(), ExportONNX(tmp_path / "model.onnx"), report]
    module = Classifier(lr=0.05)
    trainer(tmp_path, *callbacks, epochs=3).fit(module, datamodule=Data())
    wanted = [cubic_sparsity(i / 12, 0.6, 0.0, 0.5) for i in range(12)]
    assert watch.zeros == pytest.approx(wanted, abs=1 / 216)
    pruned = [weight == 0 for weight in watch.weights]
    assert all(bool((later | ~earlier).all()) for earlier, later in itertools.pairwise(pruned))  # none returns
    assert list(pruning.masks) == ["conv2"]  # the first and the last layer are left alone
    codes = stored_codes(tmp_path / "model.onnx", (6, 4, 3, 3))
    assert not codes[~pruning.masks["conv2"].numpy()].any()
    results = report.results
    assert results is not None
    assert results.pruning is not None
    (layer,) = [layer for layer in results.pruning.layers if layer.masked]
    assert (layer.weights, layer.masked, layer.masked_not_zero) == (216, 130, 0)
    assert layer.zeros == int((codes == 0).sum()) >= 130
    assert results.pruning.proven
    sizes = {file.name: file for file in results.files}
    assert sizes["model.onnx"].size_bytes == (tmp_path / "model.onnx").stat().st_size
    assert sizes["packed folder"].zipped_bytes > 0
    assert "all of them are zero in the integer model" in (tmp_path / "report.md").read_text()
    assert "Zeros" in (tmp_path / "report.html").read_text()


def test_two_of_four_in_the_exported_codes(tmp_path: Path) -> None:
    """Oracle: every group of four neighbouring inputs in the file, one by one."""
    pruning = Pruning(pattern="2:4", every=1, exclude=["conv1"])  # which has one input channel
    export = ExportONNX(tmp_path / "model.onnx")
    trainer(tmp_path, pruning, quantization(), export, epochs=2).fit(Classifier(), datamodule=Data())
    assert set(pruning.masks) == {"conv2", "head"}
    codes = stored_codes(tmp_path / "model.onnx", (6, 4, 3, 3))
    for out in range(6):
        for row in range(3):
            for column in range(3):
                assert np.count_nonzero(codes[out, :, row, column]) <= 2
    assert export.artefact is not None
    layers = {layer.layer: layer for layer in pruning.report(export.artefact.integer).layers}
    assert layers["conv2"].violations == layers["head"].violations == 0
    assert layers["conv2"].masked == 108


def test_a_resumed_fit_has_the_same_masks_to_the_bit(tmp_path: Path) -> None:
    def fit(*callbacks: Any, seed: int = 0) -> Fit:
        pruning = Pruning(0.7, begin=0.1, end=0.8, every=2)
        length = {"epochs": -1, "max_steps": 12, "val_check_interval": 4}
        return Fit(tmp_path, loader_with_generator, seed=seed, callbacks=[pruning, *callbacks], **length)

    end = fit(CheckpointInEveryHook(tmp_path)).run().end()
    for path in sorted(tmp_path.glob("*.ckpt"))[1::4]:
        assert differences(end, fit(seed=99).run(path).end()) == [], path.name


def test_stages_of_bits_keep_the_masks_and_the_best_checkpoint_is_a_pruned_one(tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path, "best", monitor="val/top1", mode="max")
    pruning = Pruning(0.5, end=0.6, every=1)
    callbacks = [ProgressiveBits({0.0: 8, 0.25: 4}), pruning, quantization("w4a4"), best]
    module = Classifier(lr=0.05)
    trainer(tmp_path, *callbacks, epochs=4, enable_checkpointing=True).fit(module, datamodule=Data())
    assert best.save_top_k == 1
    saved = torch.load(best.best_model_path, weights_only=True)["state_dict"]["net.conv2.weight"]
    assert int((saved == 0).sum()) == 108
    network = qat.load_checkpoint(best.best_model_path, Classifier()).net
    codes = network.conv2.weight_quantizer.quantize(network.conv2.weight)
    assert int((codes == 0).sum()) >= 108


def test_averages_have_the_same_zeros(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import EMAWeightAveraging

    average, pruning = EMAWeightAveraging(decay=0.9), Pruning(0.5, end=0.5, every=1)
    module = Classifier()
    trainer(tmp_path, average, pruning, quantization(), epochs=3).fit(module, datamodule=Data())
    assert int((module.net.conv2.weight == 0).sum()) == 108  # at its end the module has the averages


def test_a_quantizer_without_zero_is_refused(tmp_path: Path) -> None:
    policy = {"preset": "w2a8", "weight": {"quantizer": "Binary"}, "first_last_quantizer": "LSQ"}
    with pytest.raises(ValueError, match="Binary, of the weight of layer 'conv2', has no zero"):
        trainer(tmp_path, Pruning(0.5), quantization(policy)).fit(Classifier(), datamodule=Data())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "write one of the two"),
        ({"sparsity": 0.5, "pattern": "2:4"}, "write one of the two"),
        ({"sparsity": 1.0}, "from 0 to below 1"),
        ({"pattern": "4:2"}, "write how many of how many"),
        ({"sparsity": 0.5, "begin": 0.6}, "rising shares"),
        ({"sparsity": 0.5, "end": 1.0}, "below 1"),
        ({"sparsity": 0.5, "every": 0}, "a number of optimizer steps"),
        ({"pattern": "2:4", "scope": "global"}, "'global' without a pattern"),
        ({"sparsity": 0.5, "match": 3}, "match=3 is not possible"),
        ({"sparsity": 0.5, "match": []}, "match=.. is not possible"),
        ({"sparsity": 0.5, "exclude": None}, "exclude=None is not possible"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pruning(**options)


def test_layers_that_do_not_exist_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="finds no layer"):
        trainer(tmp_path, Pruning(0.5, match="conv9"), quantization()).fit(Classifier(), datamodule=Data())
    with pytest.raises(ValueError, match=r"Pruning\(exclude=\['conv9'\]\) finds no layer 'conv9'"):
        trainer(tmp_path, Pruning(0.5, exclude=["conv9"]), quantization()).fit(Classifier(), datamodule=Data())
    with pytest.raises(
        ValueError, match=r"finds no layer 'type:Convd': write others; layers: .*, type:Conv2d, type:Linear"
    ):
        trainer(tmp_path, Pruning(0.5, exclude=["type:Convd"]), quantization()).fit(Classifier(), datamodule=Data())


def test_a_weight_that_the_user_masks_is_left_to_that_mask(tmp_path: Path) -> None:
    module = Classifier()
    prune.l1_unstructured(module.net.conv2, "weight", 0.25)
    with pytest.raises(ValueError, match=r"masked by torch.nn.utils.prune, is left to that"):
        trainer(tmp_path, Pruning(0.5), quantization()).fit(module, datamodule=Data())


def test_a_weight_of_two_layers_is_pruned_if_both_are() -> None:
    net = Net()
    net.conv3, net.conv4 = nn.Conv2d(4, 6, 3, padding=1), nn.Embedding(4, 24)
    net.conv3.weight, net.conv4.weight = net.conv2.weight, net.head.weight
    assert set(Pruning(0.5, exclude=()).layers(net)) == {"conv1", "conv2", "conv3"}
    assert set(Pruning(0.5, exclude=["conv3"]).layers(net)) == {"conv1"}


def test_a_fit_that_is_too_short_or_ends_early_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"its last batch begins at 75%, end=0\.9: write a smaller end"):
        trainer(tmp_path, Pruning(0.5, end=0.9), quantization()).fit(Classifier(), datamodule=Data())

    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = True

    with pytest.warns(UserWarning, match="before its zeros were final"):
        trainer(tmp_path, Pruning(0.5, end=0.7), quantization(), Stop(), epochs=2).fit(Classifier(), datamodule=Data())


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")  # the report is not needed again
def test_channels_are_taken_out_of_network_file_and_checkpoint(tmp_path: Path) -> None:
    def fit(epochs: int, *others: Any, path: Path | None = None) -> tuple[Any, Pruning]:
        pruning, last = Pruning(channels=0.5, exclude=["conv2", "head"]), ModelCheckpoint(tmp_path, save_last=True)
        module = Classifier()
        fitting = trainer(tmp_path, pruning, quantization(), last, *others, epochs=epochs, enable_checkpointing=True)
        fitting.fit(module, datamodule=Data(), ckpt_path=path, weights_only=path is not None)
        return module, pruning

    report = Report(folder=tmp_path, metric="test/top1")
    module, pruning = fit(1, report, ExportONNX(tmp_path / "model.onnx"))
    assert pruning.removed == {"conv1": (4, 2)}  # those of conv2 are flattened with their pixels
    assert module.net.conv1.weight.shape == (2, 1, 3, 3)
    assert stored_codes(tmp_path / "model.onnx", (6, 2, 3, 3)).any()
    assert report.results is not None
    assert report.results.pruning is not None
    assert [(c.layer, c.removed, c.kept) for c in report.results.pruning.removed] == [("conv1", 2, 2)]
    assert "2 of 4 channels of 1 layer were taken out" in (tmp_path / "report.md").read_text()
    assert report.results.rows[0].size_bytes == stored_bytes(Classifier().net)  # the float network is the whole one
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["net.conv2.weight"]
    assert torch.equal(qat.load_checkpoint(tmp_path / "last.ckpt", Classifier()).net.conv2.weight, saved)
    resumed, _ = fit(2, path=tmp_path / "last.ckpt")
    assert resumed.net.conv2.weight.shape == (6, 2, 3, 3)


class Sequences(nn.Module):
    """Matrices that are no layer's own weight: the projections of attention, those of an LSTM, and one of the network."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.up, self.attention = nn.Linear(8, 16), nn.MultiheadAttention(16, 2, batch_first=True)
        self.lstm, self.mixing, self.head = (
            nn.LSTM(16, 12, batch_first=True),
            nn.Parameter(torch.randn(12, 20)),
            nn.Linear(20, CLASSES),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x.squeeze(1))
        x = self.lstm(self.attention(x, x, x, need_weights=False)[0])[0][:, -1]
        return self.head(F.relu(x @ self.mixing))


def test_matrices_of_attention_and_recurrent_layers_are_chosen_by_name_and_type() -> None:
    network = Sequences()

    def found(**options: Any) -> set[str]:
        return set(Pruning(0.5, **options).layers(network))

    attention, lstm = (
        {"attention.in_proj_weight", "attention.out_proj.weight"},
        {"lstm.weight_ih_l0", "lstm.weight_hh_l0"},
    )
    assert found() == attention | lstm  # `mixing` becomes a layer when the network is prepared
    assert found(match="type:LSTM") == found(match="lstm") == lstm
    assert found(match=["attention*", "*_hh_l0"]) == attention | {"lstm.weight_hh_l0"}
    assert found(exclude=["lstm", "type:MultiheadAttention", "first", "last"]) == set()


@pytest.mark.slow
def test_matrices_of_attention_and_recurrent_layers_have_their_zeros_in_the_file(tmp_path: Path) -> None:
    """Oracle: zeros of every integer matrix in the file, by its number of weights."""
    module, pruning = Classifier(), Pruning(0.75, every=1)
    module.net = Sequences()
    trainer(tmp_path, pruning, quantization(), ExportONNX(tmp_path / "m.onnx")).fit(module, datamodule=Data())
    sizes = {name: mask.numel() for name, mask in pruning.masks.items()}
    lstm = {"lstm.weight_ih_l0": 4 * 12 * 16, "lstm.weight_hh_l0": 4 * 12 * 12}
    assert sizes == {"attention.in_proj": 768, "attention.out_proj": 256, **lstm, "mixing_2": 240}
    stored = [numpy_helper.to_array(i) for i in onnx.load(tmp_path / "m.onnx").graph.initializer if len(i.dims) > 1]
    zeros = {array.size: int((array.astype(np.float32) == 0).sum()) for array in stored}
    assert all(zeros[size] >= 0.75 * size for size in (256, 576, 240)), zeros
    assert zeros[768] >= 0.75 * 768


def test_weights_that_stay_are_named_once(tmp_path: Path) -> None:
    module = Classifier()
    prune.l1_unstructured(module.net.conv2, "weight", 0.25)
    with pytest.warns(UserWarning, match="Pruning leaves the weights of conv2 as they are") as found:
        trainer(tmp_path, Pruning(0.5, exclude="last"), quantization(), epochs=2).fit(module, datamodule=Data())
    assert sum("Pruning" in str(warning.message) for warning in found) == 1
    with pytest.warns(UserWarning, match="takes no channel of conv2, head: those that flow"):
        trainer(tmp_path, Pruning(channels=0.5, exclude=()), quantization()).fit(Classifier(), datamodule=Data())
    with pytest.warns(UserWarning, match="sets every weight of conv2 to zero: write a smaller sparsity"):
        trainer(tmp_path, Pruning(0.999), quantization()).fit(Classifier(), datamodule=Data())


@pytest.mark.filterwarnings("ignore:.*learned scale of .* has fallen to its floor")
def test_a_learned_codebook_keeps_its_zero(tmp_path: Path) -> None:
    policy = {"preset": "w4a8", "weight": {"quantizer": "KMeans"}, "first_last_quantizer": "LSQ"}
    quantizing = QuantizationAwareTraining(policy, batches=[images(32).tensors[0]])  # levels learn as fast as weights
    module, pruning = Classifier(lr=0.5), Pruning(0.5, every=1)
    trainer(tmp_path, pruning, quantizing, ExportONNX(tmp_path / "m.onnx"), epochs=2).fit(module, datamodule=Data())
    assert not stored_codes(tmp_path / "m.onnx", (6, 4, 3, 3))[~pruning.masks["conv2"].numpy()].any()


def test_a_frozen_weight_that_is_pruned_stays_zero(tmp_path: Path) -> None:
    class FreezeAll(L.Callback):
        """Every weight of conv2 is held at code 3 before anything is pruned."""

        def on_train_start(self, trainer: L.Trainer, module: Any) -> None:
            oscillations = module.net.conv2.weight_quantizer.oscillations
            oscillations.frozen.fill_(True)
            oscillations.code.fill_(3)

    module = Classifier()
    callbacks = [FreezeAll(), Pruning(0.5, every=1), OscillationControl(freezing=0.5), quantization()]
    trainer(tmp_path, *callbacks, epochs=2).fit(module, datamodule=Data())
    assert int((module.net.conv2.weight == 0).sum()) == 108


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_a_longer_resumed_fit_keeps_its_zeros_and_other_layers_are_refused(tmp_path: Path) -> None:
    def fit(epochs: int, path: Path | None = None, **options: Any) -> Watch:
        watch, last = Watch(), ModelCheckpoint(tmp_path, save_last=path is None)
        pruning = Pruning(0.5, every=1, **options)
        fitting = trainer(tmp_path, pruning, quantization(), watch, last, epochs=epochs, enable_checkpointing=True)
        fitting.fit(Classifier(), datamodule=Data(), ckpt_path=path, weights_only=path is not None)
        return watch

    fit(1)
    assert set(fit(6, tmp_path / "last.ckpt").zeros) == {0.5}
    with pytest.raises(ValueError, match="the checkpoint has masks of conv2, which Pruning does not prune here"):
        fit(2, tmp_path / "last.ckpt", match="conv1", exclude=())


class Stream(IterableDataset[Any]):
    """Images of which nobody knows how many there are."""

    def __iter__(self) -> Iterator[Any]:
        return iter(images(32))


def test_the_last_batch_decides_whether_a_fit_is_too_short(tmp_path: Path) -> None:
    module = Classifier()
    fitting = trainer(tmp_path, Pruning(0.5, end=0.9), quantization(), epochs=-1, max_steps=10)
    fitting.fit(module, datamodule=Data())
    assert int((module.net.conv2.weight == 0).sum()) == 108
    streaming = trainer(tmp_path, Pruning(0.5), quantization(), epochs=2, limit_val_batches=0)
    streaming.fit(module := Classifier(), DataLoader(Stream(), 16))
    assert int((module.net.conv2.weight == 0).sum()) == 108
    with pytest.raises(ValueError, match="its last batch begins at 0%"):
        trainer(tmp_path, Pruning(0.5), quantization()).fit(Classifier(), DataLoader(Stream(), 16))


class BringsBack(L.Callback):
    """Writes one pruned weight when the fit has ended."""

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        weight = module.net.conv2.weight.data
        weight[tuple((weight == 0).nonzero()[0])] = weight.abs().max()


@pytest.mark.parametrize("others", ["file", "file and report", "report"])
def test_zeros_that_are_not_proven_end_like_a_file_that_is_not_verified(others: str, tmp_path: Path) -> None:
    callbacks: list[Any] = [Pruning(0.5, every=1), BringsBack(), quantization()]
    callbacks += [ExportONNX(tmp_path / "model.onnx")] if "file" in others else []
    callbacks += [Report(folder=tmp_path, metric="test/top1")] if "report" in others else []
    message = r"^NOT VERIFIED, do not deploy .*: 1 of 108 pruned weights of conv2 are not zero in the integer model"
    with pytest.raises(qat.export.VerificationError, match=message):
        trainer(tmp_path, *callbacks).fit(Classifier(), datamodule=Data())
    written = {path.name for path in tmp_path.rglob("*.onnx")}
    assert written == ({"model.unverified.onnx"} if "file" in others else set())
    if "file" in others:
        assert not qat.verify(tmp_path / "model.unverified.onnx").passed
    if "report" in others:
        assert json.loads((tmp_path / "results.json").read_text())["verdict"]["outcome"] == "not_verified"
