"""Policies from the name of a preset, a YAML file, or its content."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qat.messages import shown
from qat.reading.malformed import malformed
from qat.reading.yaml_file import read_yaml
from qat.transform.policy import Policy
from qat.transform.rule import Rule
from qat.transform.tensor_rule import TensorRule

KEYS = (
    *("preset", "rules", "residual_bits", "first_last_bits", "first_last_quantizer"),
    *("weight", "activation", "embeddings", "head", "name", "target", "quantize_outputs", "reduce_range"),
)
"""The keys of a policy's content."""
PRESET = (
    r"(?P<transformer>transformer_)?"
    r"(w(?P<weight>\d+)(a(?P<activation>\d+)|(?P<dynamic>_dynamic(?P<token>_per_token)?))?"
    r"|(?P<format>fp8_static|fp8|mxfp8|mxfp6|mxfp4|mxint8|nvfp4)(?P<alone>_weights)?)"
)
DYNAMIC = {"bits": 8, "symmetric": False, "quantizer": "Dynamic"}
"""The rule for the inputs of layers in a preset that ends in _dynamic."""
FORMATS: dict[str, dict[str, Any]] = {
    "fp8": {"bits": 8, "quantizer": "FP8"},
    "fp8_static": {"bits": 8, "quantizer": "FP8"},
    "mxfp8": {"bits": 8, "quantizer": {"_target_": "MX", "element": "E4M3"}},
    "mxfp6": {"bits": 6, "quantizer": {"_target_": "MX", "element": "E2M3"}},
    "mxfp4": {"bits": 4, "quantizer": {"_target_": "MX", "element": "E2M1"}},
    "mxint8": {"bits": 8, "quantizer": {"_target_": "MX", "element": "INT8"}},
    "nvfp4": {"bits": 4, "quantizer": "NVFP4"},
}
"""Format in the name of a preset -> the rule for its tensors."""
STATIC_INPUTS = {"fp8_static": {"bits": 8, "quantizer": "FP8Static", "observer": "MinMax"}}
"""Format -> the rule for inputs of layers, where it differs from that for weights."""
PER_TOKEN = {"bits": 8, "quantizer": "DynamicPerToken"}
"""The rule for the inputs of layers in a preset that ends in _dynamic_per_token."""
REDUCED = ("w7a8", "transformer_w7a8")
"""Presets whose weights have 7 bits for the sake of processors without VNNI: no layer may have 8."""


def load_policy(source: str | Path | Mapping[str, Any] | Policy, **overrides: Any) -> Policy:
    """A policy from a preset's name, the path of a YAML file, or its content.

    Presets: w<bits>a<bits> ("w4a8") for weights and activations, w<bits> ("w4") for weights alone, w<bits>_dynamic
    ("w8_dynamic") for weights and, with ranges of each batch, the 8-bit inputs of layers; w<bits>_dynamic_per_token with a
    range for each token. fp8, mxfp8, mxfp6, mxfp4, mxint8, nvfp4: weights and inputs of layers in this format, the first and
    the last layer in fp8; fp8_static: fp8 with a calibrated scale for each input; <format>_weights: weights alone.
    transformer_<any of these>: the same, with rules of their own for embeddings and the head.

    Content: `preset` or `rules` (name -> {match, weight, activation}), `residual_bits` (8), `first_last_bits` (8; null:
    no rules for the first and last layer), `first_last_quantizer` (null: as the others), `weight` and `activation` (fields
    for every rule: quantizer, observer, granularity, ...), `embeddings` and `head` (beside a preset transformer_...: bits of
    their weights, 8; null leaves them in float), `name`, `target` (null: any), `quantize_outputs` (false), `reduce_range` (true
    for the preset w7a8, so that its first and last layer have 7 bits, too; otherwise false). Rules beside a preset come after
    it; a null rule removes the preset's rule of that name.

    Raises:
        ValueError: unknown preset, key or field, or an impossible value.
        FileNotFoundError: no such YAML file.
    """
    if isinstance(source, Policy):
        _check_keys(overrides, [field.name for field in dataclasses.fields(Policy)], "a finished policy")
        return replace(source, **overrides)
    if isinstance(source, Mapping):
        content = dict(source)
    elif not isinstance(source, str | Path):
        raise ValueError(
            f"policy {shown(source)} is not a policy: write a preset such as 'w8a8', a .yaml file, or a dict of rules."
        )
    elif re.fullmatch(PRESET, str(source)):
        content = {"preset": str(source)}
    elif Path(source).suffix in (".yaml", ".yml"):
        if not Path(source).is_file():
            raise FileNotFoundError(
                f"policy file {source} does not exist: write the path of a YAML file, or a preset such as w4a8."
            )
        return _from_file(Path(source), overrides)
    else:
        known = ["w8a8", "w4a8", "w4a4", "w2a2", "w4", "w8_dynamic", "w8_dynamic_per_token", *FORMATS]
        known += [f"{name}_weights" for name in FORMATS if name not in STATIC_INPUTS]
        near = difflib.get_close_matches(str(source).lower(), [*known, *(f"transformer_{name}" for name in known)], 1)
        raise ValueError(
            f"policy {str(source)!r} is neither a preset (such as w8a8, w4a8, w2a2, w4, w8_dynamic, nvfp4) nor a .yaml file"
            f"{f'; did you mean {near[0]}?' if near else '.'}"
        )
    return _from_content(content | overrides)


def _from_file(path: Path, overrides: Mapping[str, Any]) -> Policy:
    """A policy from a YAML file; its errors begin with the file's name."""
    content = read_yaml(path)
    with malformed(path, "is not a policy", "correct it"):
        try:
            return _from_content(content | dict(overrides))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


def _from_content(content: Mapping[str, Any]) -> Policy:
    _check_keys(content, KEYS, "a policy")
    for key in ("weight", "activation", "rules"):
        _check_mapping(content.get(key), key)
    defaults = {
        "weight": {"granularity": "per_channel", "narrow": True} | dict(content.get("weight") or {}),
        "activation": dict(content.get("activation") or {}),
    }
    preset = content.get("preset")
    rules = {} if preset is None else _preset_rules(preset, content)
    rules.update(content.get("rules") or {})
    return Policy(
        rules={name: _rule(name, rule, defaults) for name, rule in rules.items() if rule is not None},
        residual_bits=content.get("residual_bits", 8),
        name=str(content.get("name") or preset or "custom"),
        target=content.get("target"),
        quantize_outputs=_flag(content, "quantize_outputs"),
        reduce_range=_flag(content, "reduce_range", default=str(preset) in REDUCED),
    )


def _flag(content: Mapping[str, Any], key: str, default: bool = False) -> bool:
    value = default if content.get(key) is None else content[key]
    if not isinstance(value, bool):
        raise ValueError(f"{key}={value!r} is neither true nor false: write {key}: true, without quotes.")
    return value


def _preset_rules(preset: Any, content: Mapping[str, Any]) -> dict[str, Any]:
    """The rules that a preset stands for, as content: all layers, then the first and the last one."""
    found = re.fullmatch(PRESET, str(preset))
    for tensor in ("weight", "activation"):
        if "bits" in (content.get(tensor) or {}):
            raise ValueError(
                f"{tensor}.bits={content[tensor]['bits']} cannot stand beside preset={preset}, which sets the bits: write "
                "another preset."
            )
    if not found:
        raise ValueError(
            f"preset={preset!r} does not exist: write w<bits>a<bits>, for example w4a8, w4 (weights alone), w8_dynamic or "
            "nvfp4."
        )
    if not found["transformer"] and (of_transformers := {"embeddings", "head"} & content.keys()):
        raise ValueError(
            f"{sorted(of_transformers)[0]} stands beside preset={preset}: write preset: transformer_{preset}, or a rule."
        )
    own = {"quantizer": "FP8"} if found["format"] else {}
    if own and "quantizer" in {*(content.get("weight") or {}), *(content.get("activation") or {})}:
        raise ValueError(
            f"a quantizer cannot stand beside preset={preset}, which is one: write w<bits>, for example w4, or rules."
        )
    weights, inputs = _of_all(found)
    rules: dict[str, Any] = {"all": {"match": "*", "weight": weights, "activation": inputs}}
    bits, quantizer = content.get("first_last_bits", 8), content.get("first_last_quantizer")
    if bits is not None:
        ends = (own if quantizer is None else {"quantizer": quantizer}) | {"bits": bits}
        both = found["activation"] or (found["format"] and inputs)
        for end in ("first", "last"):
            of_input = inputs if found["format"] in STATIC_INPUTS and quantizer is None else ends
            rules[end] = {"match": end, "weight": ends, "activation": of_input if both else inputs}
    if found["transformer"]:
        rules |= _transformer_rules(
            content, own, STATIC_INPUTS.get(found["format"], FORMATS["fp8"]) if found["format"] and inputs else inputs
        )
    return rules


def _transformer_rules(
    content: Mapping[str, Any], own: Mapping[str, Any], inputs: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Rules for embeddings, which not every transformer has, and for the last layer.

    content: the policy's content.
    own: fields of the weights' rules beside their bits.
    inputs: the rule for the input of the last layer.
    """
    embeddings, head = content.get("embeddings", 8), content.get("head", 8)
    return {
        "embeddings": {
            "match": "type:Embedding",
            "weight": None if embeddings is None else {"bits": embeddings, **own},
            "required": False,
        },
        "head": {
            "match": "last",
            "weight": None if head is None else {"bits": head, **own},
            "activation": None if head is None else inputs,
        },
    }


def _of_all(preset: re.Match[str]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The rules of a preset for the weights and, if they are quantized, for the inputs of all layers."""
    if preset["format"]:
        rule = FORMATS[preset["format"]]
        return rule, None if preset["alone"] else STATIC_INPUTS.get(preset["format"], rule)
    weights = {"bits": int(preset["weight"])}
    if preset["activation"]:
        return weights, {"bits": int(preset["activation"])}
    if preset["dynamic"]:
        return weights, PER_TOKEN if preset["token"] else DYNAMIC
    return weights, None


def _rule(name: str, content: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> Rule:
    _check_mapping(content, f"rule {name!r}")
    _check_keys(content, ("match", "weight", "activation", "required"), f"rule {name!r}")
    if not isinstance(content.get("match"), str | int):
        raise ValueError(f"rule {name!r} does not say which layers: add match, for example match: 'layer1.*'.")
    weight, activation = (_tensor_rule(name, key, content.get(key), defaults[key]) for key in defaults)
    return Rule(str(content["match"]), weight, activation, _flag(content, "required", default=True))


def _tensor_rule(
    rule: str, tensor: str, fields: Mapping[str, Any] | None, defaults: Mapping[str, Any]
) -> TensorRule | None:
    if fields is None:
        return None
    _check_mapping(fields, f"{tensor} of rule {rule!r}")
    names = [f.name for f in dataclasses.fields(TensorRule)]
    _check_keys(fields, names, f"{tensor} of rule {rule!r}")
    merged = {**defaults, **fields}
    _check_keys(merged, names, tensor)
    if "bits" not in merged:
        raise ValueError(f"{tensor} of rule {rule!r} has no bits: write for example bits: 8.")
    try:
        return TensorRule(**merged)
    except ValueError as error:
        raise ValueError(f"{tensor} of rule {rule!r}: {error}") from None


def _check_mapping(content: object, where: str) -> None:
    if content is not None and not isinstance(content, Mapping):
        example = "{mine: {match: 'layer1.*', weight: {bits: 4}}}" if where == "rules" else "{bits: 8}, or {}"
        raise ValueError(f"{where}={content!r} has no keys: write for example {example}.")


def _check_keys(content: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in content:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}."
            raise ValueError(f"unknown key {key!r} in {where}; {hint}")
