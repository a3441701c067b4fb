"""Packed weights of networks of transformers: a folder, the Hub, the card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import qat
from tests.hf.tiny import bert, llama, words

pytest.importorskip("transformers", reason="needs the extra hf: pip install 'qat-lightning[hf]'")

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*isinstance.*treespec.*LeafSpec"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def prepared(model: nn.Module, policy: str, **options: Any) -> nn.Module:
    example = words()
    result = qat.prepare(model, qat.load_policy(policy, **options), example)
    qat.calibrate(result, [example])
    return result.eval()


def test_a_tied_llama_generates_the_same_tokens(tmp_path: Path) -> None:
    network = prepared(llama(), "w4", first_last_bits=None)
    folder = qat.hf.save_pretrained(network, tmp_path / "llama")
    loaded = qat.hf.from_pretrained(folder)
    assert type(loaded).__name__ == "LlamaForCausalLM"
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    ids = words(2)["input_ids"]
    tokens = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(loaded.generate(ids, **tokens), network.generate(ids, **tokens))
    with torch.no_grad():
        batch = words()
        assert torch.equal(loaded(**batch).logits, network(**batch).logits)
    assert loaded.generation_config.to_dict() == network.generation_config.to_dict()


def test_the_size_is_as_the_bits_promise(tmp_path: Path) -> None:
    network = prepared(llama(use_cache=False), "w4", first_last_bits=None, weight={"quantizer": "Static"})
    qat.hf.save_pretrained(network, tmp_path)
    file = next(tmp_path.glob("*.safetensors"))
    quantized = sum(p.numel() for p in network.parameters() if p.ndim == 2)
    channels = sum(p.shape[0] for p in network.parameters() if p.ndim == 2)
    header = int.from_bytes(file.read_bytes()[:8], "little")
    batch = words()
    with torch.no_grad():
        assert torch.equal(qat.hf.from_pretrained(tmp_path)(**batch).logits, network(**batch).logits)
    rest = file.stat().st_size - header - quantized // 2
    assert 0 <= rest < 4 * channels + 4 * 64 + 4 * 40 * 5 + 300  # scales, again for the head; norms; frequencies


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_bert_in_integers_goes_on_learning(attention: str, tmp_path: Path) -> None:
    network = prepared(bert(attn_implementation=attention), "transformer_w8a8")
    loaded = qat.hf.from_pretrained(qat.hf.save_pretrained(network, tmp_path))
    assert loaded.config._attn_implementation == attention
    batch = words()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, network(**batch).logits)
        assert torch.equal(qat.convert(loaded)(**batch)[0], qat.convert(network)(**batch)[0])
    loaded.train()(**batch).logits.square().mean().backward()
    assert loaded.classifier.weight.grad is not None


def test_the_hub_gets_the_same_folder_and_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from qat.hf import pretrained

    hub = tmp_path / "hub"

    class Offline:
        def __init__(self, token: str | None = None) -> None:
            assert token == "secret"

        def create_repo(self, name: str, **options: Any) -> Any:
            assert options == {"private": True, "exist_ok": True}
            return SimpleNamespace(repo_id=name)

        def upload_folder(self, repo_id: str, folder_path: str, **options: Any) -> str:
            shutil.copytree(folder_path, hub / repo_id)
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(pretrained, "HfApi", Offline)
    monkeypatch.setattr(pretrained, "snapshot_download", lambda name, **options: str(hub / name))
    network = prepared(bert(), "w4")
    assert qat.hf.push_to_hub(network, "me/bert", private=True, token="secret") == "https://hub/me/bert"
    assert sorted(p.name.split("-")[0] for p in (hub / "me/bert").iterdir()) == [
        *("README.md", "config.json", "manifest.json", "packed"),
    ]
    loaded, batch = qat.hf.from_pretrained("me/bert"), words()
    with torch.no_grad():
        assert torch.equal(loaded(**batch).logits, network(**batch).logits)


def test_the_card_and_a_network_of_ones_own(tmp_path: Path) -> None:
    class Mine(nn.Sequential):
        pass

    model = Mine(nn.Linear(8, 100))
    network = qat.prepare(model, qat.load_policy("w4", first_last_bits=None))
    qat.calibrate(network, [torch.randn(2, 8)])
    qat.hf.save_pretrained(network, tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "# Mine, quantized with w4" in card
    assert "800 weights of 4 bits." in card
    assert "model=MyNetwork()" in card
    x = torch.randn(2, 8)
    assert torch.equal(qat.hf.from_pretrained(tmp_path, model)(x), network(x))


def test_a_class_that_transformers_does_not_have(tmp_path: Path) -> None:
    qat.hf.save_pretrained(prepared(bert(), "w4"), tmp_path)
    path = tmp_path / "config.json"
    for name in ("Evil", "AutoModel", "pipeline"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "architectures": [name]}))
        with pytest.raises(ValueError, match=f"has no network '{name}'"):
            qat.hf.from_pretrained(tmp_path)


@pytest.mark.parametrize("source", ["no/such/folder", "./folder", "~/no_folder_of_mine"])
def test_a_folder_that_does_not_exist_is_named(source: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(source)} is neither a folder nor .*: write a folder"):
        qat.hf.from_pretrained(source)


def test_a_repository_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import LocalEntryNotFoundError

    def missing(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("Cannot find a snapshot.\nMore of it.")

    monkeypatch.setattr("qat.hf.pretrained.snapshot_download", missing)
    said = (
        r"^nowhere is no folder, and the Hub gave no .*\(Cannot find a snapshot\): write a folder .* or OWNER/NAME\.$"
    )
    with pytest.raises(OSError, match=said):
        qat.hf.from_pretrained("nowhere")


def test_the_card_counts_tied_weights_once(tmp_path: Path) -> None:
    model = llama()
    network = qat.prepare(model, "transformer_w8a8", words())
    qat.calibrate(network, [words()])
    qat.hf.save_pretrained(network, tmp_path)
    number = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 2)
    card = (tmp_path / "README.md").read_text()
    assert re.search(rf"^{number:,} weights of 8 bits\. The weights take [\d.]+ kB\.$", card, re.MULTILINE)
