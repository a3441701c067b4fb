"""The callback of `Trainer`: with the real one, and, where accelerate is missing, with its events alone."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.quantizers import Mode
from qat.transform import quantizers
from tests.hf.tiny import bert, words

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'qat-lightning[hf]'")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*LeafSpec"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
POLICY = "transformer_w8a8"


class Events:
    """What `Trainer` does around a training, in its order: structure, weights, optimizer, its state, the loop."""

    def __init__(self, folder: Path, policy: str = POLICY, steps: int = 1) -> None:
        from transformers import TrainerControl, TrainerState
        from transformers.trainer_callback import CallbackHandler

        torch.manual_seed(0)
        self.model, self.folder = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0), folder
        self.batches = [words(labels=True) for _ in range(4)]
        self.callback = qat.hf.QuantizationAwareTraining(policy, self.batches[:2], quantizer_lr_ratio=0.5)
        self.handler = CallbackHandler([self.callback], self.model, None, None, None)
        self.args = type("Arguments", (), {"output_dir": str(folder), "gradient_accumulation_steps": steps})()
        self.state, self.control = TrainerState(stateful_callbacks=[self.callback]), TrainerControl()
        self.handler.on_init_end(self.args, self.state, self.control)

    def train(self, until: int, resume: int | None = None) -> None:
        from safetensors.torch import load_file
        from transformers import TrainerState

        if resume is not None:
            folder = self.folder / f"checkpoint-{resume}"
            checkpoint = torch.load(folder / "rest.pt", weights_only=True)
            self.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
            self.state = TrainerState(**json.loads(checkpoint["state"]))
        decayed = [p for n, p in self.model.named_parameters() if "bias" not in n]
        others = [p for n, p in self.model.named_parameters() if "bias" in n]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-3)
        if resume is not None:
            self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.handler.optimizer = self.optimizer
        self.handler.on_train_begin(self.args, self.state, self.control)
        self.model.train()
        for step in range(self.state.global_step, until):
            self.optimizer.zero_grad()
            batch = self.batches[step % 4]
            self.model(**batch, num_items_in_batch=torch.tensor(4)).loss.backward()
            self.optimizer.step()
            self.state.global_step = step + 1
            self.save()
        self.handler.on_train_end(self.args, self.state, self.control)

    def save(self) -> None:
        folder = self.folder / f"checkpoint-{self.state.global_step}"
        self.model.save_pretrained(folder)
        self.state.stateful_callbacks["QuantizationAwareTraining"] = self.callback.state()
        state = json.dumps({"global_step": self.state.global_step, "stateful_callbacks": self.state.stateful_callbacks})
        torch.save({"optimizer": self.optimizer.state_dict(), "state": state}, folder / "rest.pt")
        self.handler.on_save(self.args, self.state, self.control)


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_structure_before_the_optimizer_and_calibration_at_the_start(tmp_path: Path) -> None:
    torch.manual_seed(0)
    floats = bert(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    events = Events(tmp_path)
    batch = events.batches[3]
    torch.testing.assert_close(events.model(**batch).logits, floats(**batch).logits)  # measured in float until then
    expected = qat.prepare(floats, POLICY, events.batches[0])
    qat.calibrate(expected, events.batches[:2])
    events.train(until=0)
    assert same(events.model.state_dict(), expected.state_dict())
    assert {q.mode for q in quantizers(events.model).values()} == {Mode.QUANTIZE}
    names = {id(p): name for name, p in events.model.named_parameters()}
    groups = [({names[id(p)] for p in g["params"]}, g["weight_decay"], g["lr"]) for g in events.optimizer.param_groups]
    scales = [g for g in groups if any("quantizer" in n or n.startswith("sites.") for n in g[0])]
    assert scales
    assert all(decay == 0 and rate == 0.5e-3 for _, decay, rate in scales)
    assert {n for g in groups for n in g[0]} == set(names.values())
    assert torch.optim.Optimizer.add_param_group.__module__ == "torch.optim.optimizer"  # as it was


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = Events(tmp_path / "whole")
    whole.train(until=4)
    first = Events(tmp_path / "parts")
    first.train(until=2)
    second = Events(tmp_path / "parts")
    second.train(until=4, resume=2)
    assert same(second.model.state_dict(), whole.model.state_dict())
    record = json.loads((tmp_path / "parts/checkpoint-2/qat.json").read_text())
    assert record["policy"]["name"] == POLICY
    assert record["capture"]["way"] == "torch.export"


def test_another_policy_and_a_checkpoint_without_quantizers_are_refused(tmp_path: Path) -> None:
    events = Events(tmp_path)
    events.train(until=1)
    with pytest.raises(ValueError, match="the checkpoint was trained with policy"):
        Events(tmp_path, "transformer_w4a8").train(until=2, resume=1)
    events.state.stateful_callbacks.clear()
    with pytest.raises(ValueError, match="holds a network without quantizers"):
        events.handler.on_train_begin(events.args, events.state, events.control)


def test_the_loss_is_the_mean_and_runs_the_graph(tmp_path: Path) -> None:
    """`Trainer` leaves it to networks with `num_items_in_batch` to divide by the accumulated batches."""
    events = Events(tmp_path, steps=2)
    seen = []
    site = next(m for n, m in events.model.named_modules() if n.startswith("sites.") and n.count(".") == 1)
    site.register_forward_hook(lambda *_: seen.append(1))
    events.callback.on_train_begin(events.args, events.state, events.control, model=events.model)
    events.model.train()
    seen.clear()
    mean = events.model(**events.batches[0]).loss
    half = events.model(**events.batches[0], num_items_in_batch=torch.tensor(8)).loss
    torch.testing.assert_close(half, mean / 2)
    assert len(seen) == 2


def test_batches_must_be_several() -> None:
    with pytest.raises(ValueError, match=r"pass a list of batches, \[batch\]"):
        qat.hf.QuantizationAwareTraining("w8a8", words())
    with pytest.raises(ValueError, match="quantizer_lr_ratio=0"):
        qat.hf.QuantizationAwareTraining("w8a8", [words()], quantizer_lr_ratio=0)


@pytest.mark.slow
def test_the_real_trainer_resumes_what_it_would_have_trained(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="transformers.Trainer needs accelerate: pip install 'qat-lightning[hf]'")
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    data = [{name: value[0] for name, value in words(1, labels=True).items()} for _ in range(16)]
    network = bert()

    def fit(folder: Path, **options: Any) -> nn.Module:
        batch = {name: torch.stack([row[name] for row in data[:4]]) for name in data[0]}
        common = {"save_steps": 2, "report_to": [], "use_cpu": True, "disable_tqdm": True, "seed": 3}
        args = TrainingArguments(str(folder), max_steps=4, per_device_train_batch_size=4, **common)
        callback = qat.hf.QuantizationAwareTraining(POLICY, [batch])
        trainer = Trainer(copy.deepcopy(network), args, train_dataset=data, callbacks=[callback])
        trainer.train(**options)
        return trainer.model

    whole = fit(tmp_path)
    resumed = fit(tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same(resumed.state_dict(), whole.state_dict())
    assert json.loads((tmp_path / "checkpoint-2/qat.json").read_text())["policy"]["name"] == POLICY


def test_a_checkpoint_has_the_names_that_trainer_restores(tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import ViTConfig, ViTForImageClassification
    from transformers.trainer_callback import CallbackHandler

    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = ViTForImageClassification(ViTConfig(image_size=4, patch_size=2, num_labels=2, **sizes))
    batch = {"pixel_values": torch.randn(2, 3, 4, 4), "labels": torch.tensor([0, 1])}
    callback = qat.hf.QuantizationAwareTraining("w8a8", [batch])
    CallbackHandler([callback], model, None, None, None).on_init_end(object(), None, None)  # type: ignore[arg-type]
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


def test_a_training_that_would_not_run_the_quantizers_ends(tmp_path: Path) -> None:
    """A network of transformers serves other calls by its own forward, in which activations are floats."""
    events = Events(tmp_path)
    events.callback.on_train_begin(events.args, events.state, events.control, model=events.model)
    batch = {name: x for name, x in events.batches[0].items() if name != "attention_mask"}
    with pytest.raises(ValueError, match=r"with input_ids, labels, and the first of batches=... has other arguments"):
        events.model.train()(**batch)
    events.model.eval()(**batch)
