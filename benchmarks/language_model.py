"""A small Llama with weights of 4 bits: QAT by distillation against PTQ (nearest, GPTQ), in held-out loss, with several seeds.

The network has Llama's layers, from its configuration, and is trained from nothing on characters. The text is what every Python
brings along: the docstrings of its standard library (top-level modules); every tenth module is held out. The float network of
each seed is the teacher: QAT sees its outputs on the training text, and no labels. About six minutes of processor time.

python -m benchmarks.language_model --threads 1
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import math
import platform
import sysconfig
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.measurement_file import RESULTS, write_measurement
from qat.ptq import GPTQ, Calibrate, Pass, apply_passes

LENGTH, BATCH = 128, 16
SIZE: dict[str, Any] = {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 3}
CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))
"""The vocabulary; any other character becomes a question mark."""
FORMATS: dict[str, Any] = {
    "int4 per group of 32": {
        "preset": "transformer_w4",
        "weight": {"granularity": "per_group", "group_size": 32},
        "first_last_bits": None,
    },
    "NVFP4": {"preset": "transformer_nvfp4_weights", "first_last_bits": None},
}
"""Policies; the embedding and the last layer have 8 bits."""
PTQ: dict[str, dict[str, list[Pass]]] = {
    "int4 per group of 32": {
        "PTQ min-max": [Calibrate("MinMax")],
        "PTQ MSE": [Calibrate("MSE")],
        "PTQ GPTQ": [Calibrate("MinMax"), GPTQ()],
        "PTQ GPTQ, MSE": [Calibrate("MSE"), GPTQ()],
    },
    "NVFP4": {"PTQ nearest": [Calibrate("MinMax")], "PTQ GPTQ": [Calibrate("MinMax"), GPTQ()]},
}


def texts() -> tuple[str, str]:
    """(training text, held-out text)."""
    parts: list[list[str]] = [[], []]
    for number, path in enumerate(sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))):
        kinds = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
        nodes = [n for n in ast.walk(ast.parse(path.read_bytes())) if isinstance(n, kinds)]
        found = [text for node in nodes if (text := ast.get_docstring(node))]
        parts[number % 10 == 9].append("\n\n".join(found))
    train, held_out = ("\n\n\n".join(filter(None, part)) for part in parts)
    return train, held_out


def encode(text: str) -> Tensor:
    """Characters as numbers: int64 (characters,)."""
    numbers = {character: i for i, character in enumerate(CHARACTERS)}
    return torch.tensor([numbers.get(character, numbers["?"]) for character in text])


def batches(text: Tensor, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Random pieces of the text: (BATCH, LENGTH)."""
    for _ in range(steps):
        starts = torch.randint(len(text) - LENGTH, (BATCH, 1), generator=generator)
        yield text[starts + torch.arange(LENGTH)]


def llama() -> nn.Module:
    """The network with new weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    heads = SIZE["num_attention_heads"]
    config = LlamaConfig(
        vocab_size=len(CHARACTERS), num_key_value_heads=heads, max_position_embeddings=LENGTH, use_cache=False, **SIZE
    )
    network: nn.Module = LlamaForCausalLM(config)
    return network


def logits(network: nn.Module, ids: Tensor) -> Tensor:
    """(batch, length, characters)."""
    scores: Tensor = network(input_ids=ids).logits
    return scores


def cross_entropy(network: nn.Module, ids: Tensor) -> Tensor:
    """The mean loss of the next character, in nats."""
    return F.cross_entropy(logits(network, ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(network: nn.Module, text: Tensor, pieces: int) -> float:
    """The mean loss over the first pieces of the text."""
    network.eval()
    rows = text[: len(text) // LENGTH * LENGTH].reshape(-1, LENGTH)[:pieces].split(BATCH)
    losses = [cross_entropy(network, row).item() * len(row) for row in rows]
    return sum(losses) / sum(map(len, rows))


def train(network: nn.Module, data: Iterator[Tensor], steps: int, lr: float, teacher: nn.Module | None = None) -> None:
    """AdamW, warm-up and cosine. With a teacher, the loss is the divergence from its distribution, and nothing else.

    Learned scales move at a hundredth of the rate of the weights.
    """
    scales = [p for name, p in network.named_parameters() if name.endswith("quantizer.scale")]
    weights = [p for name, p in network.named_parameters() if not name.endswith("quantizer.scale")]
    groups = [{"params": weights, "lr": lr}, {"params": scales, "lr": lr / 100, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.01)

    def schedule(step: int) -> float:
        return min(1.0, (step + 1) / (0.05 * steps)) * 0.5 * (1 + math.cos(math.pi * step / steps))

    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    network.train()
    for ids in data:
        if teacher is None:
            loss = cross_entropy(network, ids)
        else:
            with torch.no_grad():
                target = logits(teacher, ids).log_softmax(-1)
            ours = logits(network, ids).log_softmax(-1)
            loss = F.kl_div(ours, target, log_target=True, reduction="sum") / ids.numel()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        scheduler.step()


def measure_seed(seed: int, train_text: Tensor, held_out: Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """Losses of the float network and of every row of every format."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    network = llama()
    train(network, batches(train_text, options.steps, generator), options.steps, options.lr)
    network.eval()
    calibration = [{"input_ids": ids} for ids in batches(train_text, options.calibration, generator)]
    found: dict[str, Any] = {"seed": seed, "float": held_out_loss(network, held_out, options.pieces), "formats": {}}
    print(f"seed {seed}: float {found['float']:.4f}", flush=True)
    for name in options.formats:
        policy = qat.load_policy(FORMATS[name])
        rows: dict[str, float] = {}
        for row, passes in PTQ[name].items():
            rows[row] = held_out_loss(apply_passes(passes, network, policy, calibration), held_out, options.pieces)
        prepared = qat.prepare(network, policy, calibration[0])
        qat.calibrate(prepared, calibration)
        data = batches(train_text, options.qat_steps, generator)
        train(prepared, data, options.qat_steps, options.qat_lr, network)
        rows["QAT, distilled"] = held_out_loss(prepared, held_out, options.pieces)
        found["formats"][name] = {"rows": rows, "bytes": packed_bytes(prepared, calibration[0]["input_ids"])}
        print(f"  {name}: " + ", ".join(f"{row} {loss:.4f}" for row, loss in rows.items()), flush=True)
    return found


def packed_bytes(prepared: nn.Module, ids: Tensor) -> int:
    """The size of the packed weights, which are loaded again and must compute the same, bit for bit."""
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings(action="ignore"):
            qat.save_quantized(prepared, folder)
        loaded = qat.load_quantized(folder, llama)
        if not torch.equal(logits(loaded, ids), logits(prepared, ids)):
            raise RuntimeError("the packed file computes something else.")
        return next(Path(folder).glob("*.safetensors")).stat().st_size


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--steps", type=int, default=500, help="of the float training")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--qat-steps", type=int, default=180)
    parser.add_argument("--qat-lr", type=float, default=5e-4)
    parser.add_argument("--calibration", type=int, default=8, help="batches")
    parser.add_argument("--pieces", type=int, default=512, help="held-out pieces of 128 characters")
    parser.add_argument("--out", type=Path, default=RESULTS / "language_model/cpu.json")
    options = parse_options(parser)
    start = time.process_time()
    train_text, held_out = texts()
    content = {
        "text": {
            "python": platform.python_version(),
            "characters": len(train_text),
            "held_out": len(held_out),
            "sha256": hashlib.sha256((train_text + held_out).encode()).hexdigest(),
        },
        "network": {**SIZE, "parameters": sum(p.numel() for p in llama().parameters()), "characters": len(CHARACTERS)},
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "threads")},
    }
    seeds = [measure_seed(seed, encode(train_text), encode(held_out), options) for seed in options.seeds]
    write_measurement(options.out, {**content, "processor_seconds": time.process_time() - start, "seeds": seeds})


if __name__ == "__main__":
    main()
