"""The model card of a quantized network: what it is, how it is loaded, and what a run measured."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData
from torch import nn
from transformers import PreTrainedModel

from qat.nn import quantized_weights
from qat.quantizers.codebook import Codebook
from qat.report.pages.markdown import comparison
from qat.report.results.schema import Results
from qat.report.text_of_numbers import format_count, format_size
from qat.transform.record import record_of


def model_card(model: nn.Module, folder: Path, results: Results | None) -> str:
    """The card as Markdown, with the Hub's metadata.

    Args:
        model: the network that was saved.
        folder: where it was saved; the card gives the size of its weights.
        results: of the run that made it; None: the card has no table of results.
    """
    data = ModelCardData(library_name="qat", tags=["quantized", "quantization-aware-training"])
    record = record_of(model)
    policy = record.policy.name if record is not None else str((getattr(model, "policy", None) or {}).get("name"))
    name = type(model).__name__
    size = sum(file.stat().st_size for file in folder.glob("packed-*.safetensors"))
    lines = [
        f"---\n{data.to_yaml()}\n---",
        f"# {name}, quantized with {policy}",
        f"{_widths(model)} The weights take {format_size(size)}.",
        "## Use",
        f"```python\nimport qat\n\nnetwork = {_loading(model)}\n```",
        "The network computes with fake-quantized weights and activations, and goes on learning after `network.train()`; "
        "`qat.convert(network)` makes its integers.",
    ]
    if results is not None:
        lines += ["## Results", f"**{results.verdict.text}**", *comparison(results)]
    return "\n\n".join(lines) + "\n"


def _loading(model: nn.Module) -> str:
    """The call that loads the network; one that the folder cannot build is passed."""
    record = record_of(model)
    if isinstance(model, PreTrainedModel) or record is None or record.architecture is not None:
        return 'qat.hf.from_pretrained("OWNER/NAME")'
    return 'qat.hf.from_pretrained("OWNER/NAME", model=MyNetwork())'


def _widths(model: nn.Module) -> str:
    """How many weights have how many bits; one that layers share counts once."""
    found: dict[tuple[int, int], int] = {}
    for module in model.modules():
        for _, weight, quantizer in quantized_weights(module):
            bits: Any = quantizer.bits if isinstance(quantizer, Codebook) else quantizer.spec.grid.bits
            found[id(weight), bits] = weight.numel()
    counts: Counter[int] = Counter()
    for (_, bits), number in found.items():
        counts[bits] += number
    parts = [
        f"{format_count(number, 'weight')} of {format_count(bits, 'bit')}" for bits, number in sorted(counts.items())
    ]
    return f"{', '.join(parts)}." if parts else "Its weights are integers."
