"""Architectures of Hugging Face transformers from tiny configurations."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from torch import nn

from benchmarks.coverage.case import Case, Inputs, images, noise, tokens, tokens_and_mask

VOCABULARY = 99
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
ENCODER = {**SMALL, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
DECODER = {**ENCODER, "use_cache": False}
ROTARY = {**DECODER, "num_key_value_heads": 2}
VISION = {**SMALL, "image_size": 64, "patch_size": 16}
GPT = {"vocab_size": VOCABULARY, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64, "use_cache": False}
STAGES = {"embedding_size": 16, "hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}
SEQ2SEQ = {
    "vocab_size": VOCABULARY, "d_model": 64, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "max_position_embeddings": 64,
    "use_cache": False, "forced_eos_token_id": None,
}  # fmt: skip
SPEECH = {
    **SMALL, "vocab_size": 32, "conv_dim": (32, 32, 32), "conv_kernel": (10, 3, 3), "conv_stride": (5, 2, 2),
    "num_feat_extract_layers": 3, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0,
}  # fmt: skip
WHISPER = {**SEQ2SEQ, "num_mel_bins": 16, "max_source_positions": 32, "pad_token_id": 0, "decoder_start_token_id": 1}
SEGFORMER = {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 2, 4, 4],
             "decoder_hidden_size": 32, "num_labels": 10}  # fmt: skip
SWIN = {"image_size": 64, "patch_size": 4, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}
T5 = {
    "vocab_size": VOCABULARY,
    "d_model": 64,
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "use_cache": False,
}

TEXT, MASKED, IMAGE = tokens(16, VOCABULARY), tokens_and_mask(16, VOCABULARY), images(64)
ARCHITECTURES: tuple[tuple[str, str, dict[str, Any], Inputs], ...] = (
    ("BertModel", "BertConfig", ENCODER, MASKED),
    ("BertForSequenceClassification", "BertConfig", ENCODER, MASKED),
    ("RobertaForSequenceClassification", "RobertaConfig", ENCODER, MASKED),
    ("DistilBertForSequenceClassification", "DistilBertConfig",
     {"vocab_size": VOCABULARY, "dim": 64, "n_layers": 2, "n_heads": 4, "hidden_dim": 128}, MASKED),
    ("AlbertForSequenceClassification", "AlbertConfig", {**ENCODER, "embedding_size": 32}, MASKED),
    ("ElectraForTokenClassification", "ElectraConfig", {**ENCODER, "embedding_size": 32}, MASKED),
    ("MobileBertModel", "MobileBertConfig",
     {**ENCODER, "embedding_size": 32, "intra_bottleneck_size": 32, "true_hidden_size": 32}, MASKED),
    ("GPT2LMHeadModel", "GPT2Config", GPT, TEXT),
    ("GPTNeoXForCausalLM", "GPTNeoXConfig", DECODER, TEXT),
    ("OPTForCausalLM", "OPTConfig",
     {**DECODER, "ffn_dim": 128, "word_embed_proj_dim": 64}, TEXT),
    ("LlamaForCausalLM", "LlamaConfig", ROTARY, TEXT),
    ("MistralForCausalLM", "MistralConfig", ROTARY, TEXT),
    ("Qwen2ForCausalLM", "Qwen2Config", ROTARY, TEXT),
    ("T5EncoderModel", "T5Config", T5, MASKED),
    ("BartModel", "BartConfig", SEQ2SEQ, TEXT),
    ("WhisperEncoder", "WhisperConfig", WHISPER, noise(16, 64)),
    ("Wav2Vec2ForCTC", "Wav2Vec2Config", SPEECH, noise(1600)),
    ("ViTForImageClassification", "ViTConfig", VISION, IMAGE),
    ("DeiTForImageClassification", "DeiTConfig", VISION, IMAGE),
    ("CLIPVisionModel", "CLIPVisionConfig", VISION, IMAGE),
    ("CLIPTextModel", "CLIPTextConfig", {**ENCODER, "eos_token_id": 98}, TEXT),
    ("SwinForImageClassification", "SwinConfig", SWIN, IMAGE),
    ("ConvNextForImageClassification", "ConvNextConfig", {"hidden_sizes": [16, 32, 64, 64], "depths": [1, 1, 1, 1]}, IMAGE),
    ("ResNetForImageClassification", "ResNetConfig", STAGES, IMAGE),
    ("MobileNetV2ForImageClassification", "MobileNetV2Config", {"depth_multiplier": 0.35}, IMAGE),
    ("SegformerForSemanticSegmentation", "SegformerConfig", SEGFORMER, IMAGE),
)  # fmt: skip
"""Class, class of its configuration, values of the configuration, inputs."""


def _build(name: str, config_name: str, values: dict[str, Any]) -> nn.Module:
    transformers = importlib.import_module("transformers")  # not seen by mypy, which would read the whole package
    home = transformers.models.whisper.modeling_whisper if name == "WhisperEncoder" else transformers
    return getattr(home, name)(getattr(transformers, config_name)(**values))


def cases() -> list[Case]:
    """All architectures of transformers."""
    return [
        Case(f"transformers/{name}", partial(_build, name, config, values), inputs, needs="transformers")
        for name, config, values, inputs in ARCHITECTURES
    ]
