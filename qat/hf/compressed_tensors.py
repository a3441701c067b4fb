"""Weights in floating-point formats in the layout of the library compressed-tensors, which transformers and vLLM read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from transformers import PreTrainedModel

from qat.arguments import as_path
from qat.files import write_atomically
from qat.granularity import PerChannel
from qat.hf.pretrained import CONFIG, configuration_of, without_values
from qat.nn import as_quantized, is_quantized, layer_type
from qat.quantizers import FP8, MX, NVFP4, Quantizer
from qat.transform import quantizers
from qat.transform.inspect import describe

WEIGHTS = "model.safetensors"
COMMON = {"type": "float", "symmetric": True, "dynamic": False}
LAYOUTS: dict[str, dict[str, Any]] = {
    "float-quantized": {"num_bits": 8, "strategy": "channel", **COMMON},
    "nvfp4-pack-quantized": {
        "num_bits": 4,
        "strategy": "tensor_group",
        "group_size": 16,
        **COMMON,
        "scale_dtype": "torch.float8_e4m3fn",
        "zp_dtype": "torch.float8_e4m3fn",
    },
    "mxfp4-pack-quantized": {
        "num_bits": 4,
        "strategy": "group",
        "group_size": 32,
        **COMMON,
        "scale_dtype": "torch.uint8",
        "zp_dtype": "torch.uint8",
    },
    "mxfp8-quantized": {
        "num_bits": 8,
        "strategy": "group",
        "group_size": 32,
        **COMMON,
        "scale_dtype": "torch.uint8",
        "zp_dtype": "torch.uint8",
    },
}
"""Format -> its `QuantizationArgs`, as config.json has them."""


@torch.no_grad()
def save_compressed_tensors(model: nn.Module, folder: str | Path) -> Path:
    """Write a prepared network of transformers as `model.safetensors` and `config.json`, for `from_pretrained` and vLLM.

    Weights of linear layers are stored as bits of their format with their scales: FP8 (E4M3, per channel), NVFP4, MXFP4, MXFP8
    (E4M3). Embeddings are stored in float, with the values that their quantizers give them. `qat` does not read such a folder:
    keep one of `qat.hf.save_pretrained` to go on training.

        prepared = qat.prepare(model, qat.load_policy("transformer_nvfp4_weights"), example)
        qat.hf.save_compressed_tensors(prepared, "folder")
        AutoModelForCausalLM.from_pretrained("folder")  # needs the package compressed-tensors

    Args:
        model: what `qat.prepare` made, calibrated or trained, with quantizers for weights alone.
        folder: is made, if it is missing.

    Returns:
        `folder`.

    Raises:
        ValueError: this is not such a network, or a layer has another format, rows that are not whole blocks, or a shared
            weight.
    """
    folder = as_path(folder, "folder")
    found = quantizers(model)
    if not isinstance(model, PreTrainedModel) or not found:
        raise ValueError(
            f"{type(model).__name__} is not a prepared network of transformers: qat.prepare one, or write qat.save_quantized."
        )
    if inputs := [name for name, quantizer in found.items() if not quantizer.is_weight]:
        raise ValueError(
            f"{inputs[0]} quantizes an input, which this layout is not written for: prepare with weights alone, such as "
            "transformer_nvfp4_weights."
        )
    state = model.state_dict()
    tensors = {name: state[name] for name in without_values(model.config, type(model)).state_dict()}
    layers: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if not is_quantized(module) or (quantizer := as_quantized(module).weight_quantizer) is None:
            continue
        _check_own(model, name, as_quantized(module).weight)
        weight = as_quantized(module).weight.detach()
        if layer_type(module) is not nn.Linear:
            tensors[f"{name}.weight"] = quantizer(weight)
            continue
        layout, stored = _stored(name, quantizer, weight)
        layers.setdefault(layout, []).append(name)
        del tensors[f"{name}.weight"]
        tensors |= {f"{name}.{key}": tensor for key, tensor in stored.items()}
    content = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, save(content, metadata={"format": "pt"}))
    config = configuration_of(model) | {"quantization_config": _config(model, layers)}
    write_atomically(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True) + "\n")
    return folder


def _stored(name: str, quantizer: Quantizer, weight: Tensor) -> tuple[str, dict[str, Tensor]]:
    """The layout of a linear layer, and its tensors."""
    kind = (type(quantizer), getattr(quantizer, "element", ""))
    size = getattr(quantizer, "block_size", 1)
    if kind not in ((FP8, "E4M3"), (NVFP4, "E2M1"), (MX, "E2M1"), (MX, "E4M3")) or weight.shape[1] % size:
        raise ValueError(
            f"{name} has no layout in compressed-tensors ({describe(quantizer)}): write a rule for it with FP8 (E4M3), "
            f"MX (E2M1, E4M3), NVFP4 or weight: null, and inputs that are whole blocks (it has {weight.shape[1]})."
        )
    rows = len(weight)
    bits = quantizer.format.bit_patterns(quantizer.quantize(weight))  # type: ignore[operator, union-attr]
    if isinstance(quantizer, FP8):
        if not isinstance(quantizer.spec.granularity, PerChannel):
            raise ValueError(f"{name} is scaled otherwise than per channel: write granularity: per_channel.")
        return "float-quantized", {
            "weight": bits.view(torch.float8_e4m3fn),
            "weight_scale": quantizer.qparams().scale[:, None],
        }
    if isinstance(quantizer, MX):
        scale = quantizer.shared_exponent.reshape(rows, -1)
        if quantizer.element == "E4M3":
            return "mxfp8-quantized", {"weight": bits.view(torch.float8_e4m3fn), "weight_scale": scale}
        return "mxfp4-pack-quantized", {"weight_packed": _nibbles(bits), "weight_scale": scale}
    assert isinstance(quantizer, NVFP4)
    return "nvfp4-pack-quantized", {
        "weight_packed": _nibbles(bits),
        "weight_scale": quantizer.block_scale.view(torch.float8_e4m3fn).reshape(rows, -1),
        "weight_global_scale": 1.0 / quantizer.tensor_scale,  # the library divides by it
    }


def _nibbles(bits: Tensor) -> Tensor:
    """Two values in a byte, the first one in its low half: (out, in) -> (out, in / 2)."""
    return bits[:, 0::2] | (bits[:, 1::2] << 4)


def _check_own(model: nn.Module, name: str, weight: Tensor) -> None:
    owners = [n for n, p in model.named_parameters(remove_duplicate=False) if p is weight]
    if len(owners) > 1:
        raise ValueError(
            f"{name} shares its weight, {' and '.join(owners)}, and would be stored for both: leave both in float, "
            "qat.load_policy(..., embeddings=None, head=None)."
        )


def _config(model: nn.Module, layers: dict[str, list[str]]) -> dict[str, Any]:
    """`quantization_config` of config.json."""
    groups = {
        f"group_{i}": {"targets": names, "weights": LAYOUTS[layout], "format": layout}
        for i, (layout, names) in enumerate(layers.items())
    }
    quantized = {name for names in layers.values() for name in names}
    return {
        "quant_method": "compressed-tensors",
        "format": next(iter(layers)) if len(layers) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [n for n, m in model.named_modules() if isinstance(m, nn.Linear) and n not in quantized],
    }
