"""The layout of compressed-tensors: its bytes by numpy and ml_dtypes, and read by that library where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import qat
from tests.hf.tiny import llama, words
from tests.oracles import floating_point as oracle

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'qat-lightning[hf]'")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*LeafSpec"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
WHOLE = {"intermediate_size": 64, "num_attention_heads": 2}


def prepared(policy: str, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    options = {"first_last_bits": None, "embeddings": None, "head": None} | options
    result = qat.prepare(llama(**WHOLE), qat.load_policy(f"transformer_{policy}", **options), words())
    qat.calibrate(result, [words()])
    return result.eval()


def read(folder: Path, layer: str) -> np.ndarray:
    """The weight that a layer's tensors stand for, as the library's documentation says, by ml_dtypes."""
    stored = {k.removeprefix(f"{layer}."): v for k, v in load_file(folder / "model.safetensors").items() if layer in k}
    if "weight_packed" in stored:
        packed = stored["weight_packed"].numpy()
        nibbles = np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)
        values = nibbles.view(oracle.TYPES["E2M1"]).astype(np.float32)
    else:
        values = stored["weight"].view(torch.uint8).numpy().view(oracle.TYPES["E4M3"]).astype(np.float32)
    scale = stored["weight_scale"]
    if scale.dtype is torch.uint8:
        scales = 2.0 ** (scale.numpy().astype(np.float32) - 127)
    else:
        scales = scale.float().numpy() / stored.get("weight_global_scale", torch.ones(1)).numpy()
    return values * np.repeat(scales, values.shape[1] // scales.shape[1], axis=1)


@pytest.mark.parametrize(
    "name", ["fp8", "nvfp4", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mxfp4", "mxfp8"))]
)
def test_the_bytes_stand_for_the_weights(name: str, tmp_path: Path) -> None:
    network = prepared(f"{name}_weights")
    folder = qat.hf.save_compressed_tensors(network, tmp_path)
    for layer in ("model.layers.0.self_attn.q_proj", "model.layers.0.mlp.down_proj"):
        module = network.get_submodule(layer)
        wanted = module.weight_quantizer(module.weight).detach().numpy()
        rtol = 2e-7 if name == "nvfp4" else 0  # a division by 1 / x
        np.testing.assert_allclose(read(folder, layer), wanted, rtol=rtol)
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["ignore"] == ["lm_head"]
    assert len(config["config_groups"]["group_0"]["targets"]) == 7


def test_what_has_no_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"mlp.down_proj has no layout .*mxfp6 .*whole blocks \(it has 64\)"):
        qat.hf.save_compressed_tensors(
            prepared("mxfp6_weights", rules={"a": rule("*"), "b": rule("*.down*", 6)}), tmp_path
        )
    with pytest.raises(ValueError, match=r"shares its weight, model.embed_tokens.weight and lm_head.weight"):
        qat.hf.save_compressed_tensors(prepared("nvfp4_weights", head=8), tmp_path)
    with pytest.raises(ValueError, match="quantizes an input"):
        qat.hf.save_compressed_tensors(prepared("mxfp8"), tmp_path)
    with pytest.raises(ValueError, match="is not a prepared network of transformers"):
        qat.hf.save_compressed_tensors(nn.Linear(2, 2), tmp_path)
    assert not list(tmp_path.iterdir())


def rule(match: str, bits: int | None = None) -> dict[str, Any]:
    weight = None if bits is None else {"bits": bits, "quantizer": {"_target_": "MX", "element": "E2M3"}}
    return {"match": match, "weight": weight, "activation": None}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fp8", "nvfp4", "mxfp4", "mxfp8"])
def test_transformers_reads_it_with_the_library(name: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors", reason="needs the package compressed-tensors")
    from transformers import AutoModelForCausalLM

    network = prepared(f"{name}_weights")
    dtype = torch.float32 if name == "fp8" else torch.bfloat16  # which the library dequantizes blocks to
    loaded = AutoModelForCausalLM.from_pretrained(qat.hf.save_compressed_tensors(network, tmp_path), dtype=dtype)
    batch = words()
    with torch.no_grad():
        ours, theirs = network(**batch).logits, loaded(**batch).logits.float()
    tolerance = 1e-5 if name == "fp8" else 0.03
    torch.testing.assert_close(theirs, ours, rtol=tolerance, atol=tolerance * float(ours.abs().max()))
