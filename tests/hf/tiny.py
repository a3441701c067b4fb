"""Networks of transformers, from their configuration: nothing is downloaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def llama(**options: Any) -> nn.Module:
    """Its embedding is the weight of its last layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = LlamaConfig(
        vocab_size=64, num_key_value_heads=2, tie_word_embeddings=True, pad_token_id=0, **(sizes | options)
    )
    return LlamaForCausalLM(config).eval()


def bert(**options: Any) -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    return BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=3, **sizes, **options)).eval()


def words(batch: int = 4, labels: bool = False) -> dict[str, Tensor]:
    found = {"input_ids": torch.randint(1, 64, (batch, 8)), "attention_mask": torch.ones(batch, 8, dtype=torch.long)}
    return {**found, "labels": torch.randint(3, (batch,))} if labels else found


def t5() -> nn.Module:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=64, decoder_start_token_id=0, pad_token_id=0, **sizes)).eval()
