"""Transformers from config, without weights to download: BERT, ViT, GPT-2 and Llama, small, in 8 bits static and per token, and
in 4 bits per group.

Each is trained for a few steps with plain Adam on one batch, exported and verified. Of each row: the loss before and after,
what of the network is integer, how many predictions of the file are those of the integer model and those of the float network
after training, and whether `generate` still works.

SmoothQuant is measured on the Llama with outliers as large language models have them: three features of every normalization are
30 times as large, and the weights that read them 30 times as small, so that the float network computes what it did.

With `--resume` recorded rows are kept.

python -m benchmarks.transformer_networks
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor, nn

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.measurement_file import RESULTS, write_measurement
from qat.ptq import Calibrate, SmoothQuant, apply_passes
from qat.training.optimization.parameter_groups import split_parameter_groups

SIZE: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
LABELLED: dict[str, Any] = {**SIZE, "num_labels": 5}
VOCABULARY, CLASSES = 200, LABELLED["num_labels"]

POLICIES: dict[str, Any] = {
    "w8a8": "transformer_w8a8",
    "w8 per token": "transformer_w8_dynamic_per_token",
    "w4 per group": {"preset": "transformer_w4", "weight": {"granularity": "per_group", "group_size": 32}},
}


class Subject(NamedTuple):
    """A network, a batch with labels, and whether it generates text."""

    network: Any
    batch: dict[str, Any]
    generates: bool = False


def _text(n: int = 32, length: int = 16) -> Tensor:
    return torch.randint(VOCABULARY, (n, length))


def _bert() -> Subject:
    config = transformers.BertConfig(vocab_size=VOCABULARY, **LABELLED)
    batch = {"input_ids": _text(), "attention_mask": torch.ones(32, 16).long(), "labels": torch.arange(32) % CLASSES}
    return Subject(transformers.BertForSequenceClassification(config), batch)


def _vit() -> Subject:
    config = transformers.ViTConfig(image_size=32, patch_size=8, **LABELLED)
    batch = {"pixel_values": torch.randn(32, 3, 32, 32), "labels": torch.arange(32) % CLASSES}
    return Subject(transformers.ViTForImageClassification(config), batch)


def _gpt2() -> Subject:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64, use_cache=False
    )
    ids = _text()
    return Subject(transformers.GPT2LMHeadModel(config), {"input_ids": ids, "labels": ids}, generates=True)


def _llama() -> Subject:
    config = transformers.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=4, use_cache=False, **SIZE)
    ids = _text()
    return Subject(transformers.LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}, generates=True)


NETWORKS: dict[str, Callable[[], Subject]] = {"BERT": _bert, "ViT": _vit, "GPT-2": _gpt2, "Llama": _llama}


def fit(prepared: nn.Module, batch: dict[str, Tensor], steps: int, lr: float, separate: bool) -> float:
    """The loss after some steps of Adam. separate: whether scales have a group, as in a fit with the callback."""
    if separate:
        with split_parameter_groups(prepared, 1.0):
            optimizer = torch.optim.Adam(prepared.parameters(), lr=lr)
    else:
        optimizer = torch.optim.Adam(prepared.parameters(), lr=lr)
    prepared.train()
    for _ in range(steps):
        optimizer.zero_grad()
        prepared(**batch).loss.backward()
        optimizer.step()
    prepared.eval()
    with torch.no_grad():
        return float(prepared(**batch).loss)


def measure(subject: Subject, policy: Any, options: argparse.Namespace) -> dict[str, Any]:
    """One row."""
    network, batch, generates = subject
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    prepared: Any = qat.prepare(network.eval(), qat.load_policy(policy), batch)
    qat.calibrate(prepared, [batch])
    with torch.no_grad():
        before = float(prepared.eval()(**batch).loss)
    after = fit(prepared, batch, options.steps, options.lr, options.separate)
    share = qat.inspect(prepared).share
    assert share is not None  # it was calibrated with a batch
    integer = qat.convert(prepared)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        qat.export_onnx(integer, batch, path)
        found = qat.verify(path, integer, [batch], prepared)
    with torch.no_grad():
        fake = prepared(**inputs).logits.argmax(-1)
        codes = integer(**inputs).logits.argmax(-1)
    row = {
        "loss": [before, after],
        "weights_in_integers": share.weights,
        "multiply_adds_in_integers": share.multiply_adds,
        "agreement": found.top1_agreement,
        "agreement_with_prepared": (fake == codes).double().mean().item(),
        "codes": found.codes_compared,
        "mismatches": found.code_mismatches,
        "float_ties": found.float_ties,
        "alarm": found.alarm,
    }
    if generates:
        made = prepared.generate(inputs["input_ids"][:2], max_new_tokens=4, do_sample=False, pad_token_id=0)
        row["generates"] = list(made.shape) == [2, inputs["input_ids"].shape[1] + 4]
    return row


def with_outliers(network: nn.Module, factor: float = 30.0) -> nn.Module:
    """The float function of a Llama, with three features of every normalization before layers `factor` times as large."""
    with torch.no_grad():
        layers: Any = network.get_submodule("model.layers")
        for layer in layers:
            for norm, readers in (
                (layer.input_layernorm, [getattr(layer.self_attn, f"{x}_proj") for x in "qkv"]),
                (layer.post_attention_layernorm, [layer.mlp.gate_proj, layer.mlp.up_proj]),
            ):
                chosen = torch.randperm(len(norm.weight))[:3]
                norm.weight[chosen] *= factor
                for reader in readers:
                    reader.weight[:, chosen] /= factor
    return network


def smoothed() -> dict[str, dict[str, float]]:
    """PTQ of a Llama with outliers, with SmoothQuant and without: its logits against float ones, on tokens not calibrated."""
    network = with_outliers(_llama().network.eval())
    seen, new = ({"input_ids": _text()} for _ in range(2))
    found: dict[str, dict[str, float]] = {}
    for name, passes in {"MinMax": [], "SmoothQuant, MinMax": [SmoothQuant(0.5)]}.items():
        prepared: Any = apply_passes([*passes, Calibrate("MinMax")], network, "transformer_w8a8", [seen])
        with torch.no_grad():
            ours, wanted = prepared(**new).logits, network(**new).logits
        noise = float((ours - wanted).square().sum() / wanted.square().sum())
        same = float((ours.argmax(-1) == wanted.argmax(-1)).double().mean())
        found[name] = {"sqnr_db": -10 * math.log10(noise), "agreement_with_float": same}
    return found


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names; all by default")
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), help="names; all by default")
    parser.add_argument("--steps", type=int, default=30, help="of Adam")
    parser.add_argument("--lr", type=float, default=1e-4, help="of Adam")
    parser.add_argument("--separate", action="store_true", help="scales in a group, as in a fit with the callback")
    parser.add_argument("--out", type=Path, default=RESULTS / "transformer_networks/cpu.json")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are recorded")
    options = parse_options(parser)
    recorded = json.loads(options.out.read_text())["rows"] if options.resume and options.out.is_file() else {}
    rows: dict[str, Any] = {name: row for name, row in recorded.items() if "error" not in row}
    for name in options.networks:
        for policy in options.policies:
            if f"{name} {policy}" in rows:
                continue
            torch.manual_seed(0)
            try:
                rows[f"{name} {policy}"] = measure(NETWORKS[name](), POLICIES[policy], options)
            except Exception as error:  # the others are worth knowing, too
                rows[f"{name} {policy}"] = {"error": f"{type(error).__name__}: {error}"[:400]}
            print(f"{name} {policy}: {json.dumps(rows[f'{name} {policy}'])}", flush=True)
            write_measurement(options.out, {"steps": options.steps, "rows": rows})
    torch.manual_seed(0)
    write_measurement(options.out, {"steps": options.steps, "rows": rows, "smooth_quant": smoothed()})


if __name__ == "__main__":
    main()
