"""Policies from the name of a preset, a YAML file, or its content."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from qat.reading.malformed import malformed
from qat.reading.yaml_file import read_yaml
from qat.transform.policy import Policy, Rule, TensorRule

KEYS = (
    *("preset", "rules", "residual_bits", "first_last_bits", "first_last_quantizer"),
    *("weight", "activation", "embeddings", "head", "name", "target"),
)
"""The keys of a policy's content."""
PRESET = (
    r"(?P<transformer>transformer_)?w(?P<weight>\d+)(a(?P<activation>\d+)|(?P<dynamic>_dynamic(?P<token>_per_token)?))?"
)
DYNAMIC = {"bits": 8, "symmetric": False, "quantizer": "Dynamic"}
"""The rule for the inputs of layers in a preset that ends in _dynamic."""
PER_TOKEN = {"bits": 8, "quantizer": "DynamicPerToken"}
"""The same for one that ends in _dynamic_per_token."""


def load_policy(source: str | Path | Mapping[str, Any] | Policy, **overrides: Any) -> Policy:
    """A policy from a preset's name, the path of a YAML file, or its content.

    Presets: w<bits>a<bits> ("w4a8") for weights and activations, w<bits> ("w4") for weights alone, w<bits>_dynamic
    ("w8_dynamic") for weights and, with ranges of each batch, the 8-bit inputs of layers; w<bits>_dynamic_per_token with a
    range for each token. transformer_<any of these>: the same, with rules of their own for embeddings and the head.

    Content: `preset` or `rules` (name -> {match, weight, activation}), `residual_bits` (8), `first_last_bits` (8; null:
    no rules for the first and last layer), `first_last_quantizer` (null: as the others), `weight` and `activation` (fields
    for every rule: quantizer, observer, granularity, ...), `embeddings` and `head` (beside a preset transformer_...: bits of
    their weights, 8; null leaves them in float), `name`, `target` (null: any). Rules beside a preset come after it;
    a null rule removes the preset's rule of that name.

    Raises:
        ValueError: unknown preset, key or field, or an impossible value.
        FileNotFoundError: no such YAML file.
    """
    if isinstance(source, Policy):
        return replace(source, **overrides)
    if isinstance(source, Mapping):
        content = dict(source)
    elif not isinstance(source, str | Path):
        raise ValueError(
            f"policy {source!r} is not a policy: write a preset such as 'w8a8', a .yaml file, or a dict of rules."
        )
    elif re.fullmatch(PRESET, str(source)):
        content = {"preset": str(source)}
    elif Path(source).suffix in (".yaml", ".yml"):
        if not Path(source).is_file():
            raise FileNotFoundError(f"policy file {source} does not exist.")
        return _from_file(Path(source), overrides)
    else:
        raise ValueError(
            f"policy {str(source)!r} is neither a preset (such as w8a8, w4a8, w2a2, w4, w8_dynamic) nor a .yaml file."
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
    )


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
            f"preset={preset!r} does not exist: write w<bits>a<bits>, for example w4a8, w4 (weights alone) or w8_dynamic."
        )
    if not found["transformer"] and (of_transformers := {"embeddings", "head"} & content.keys()):
        raise ValueError(
            f"{sorted(of_transformers)[0]} stands beside preset={preset}: write preset: transformer_{preset}, or a rule."
        )
    inputs = (
        {"bits": int(found["activation"])} if found["activation"] else _dynamic(found) if found["dynamic"] else None
    )
    rules: dict[str, Any] = {"all": {"match": "*", "weight": {"bits": int(found["weight"])}, "activation": inputs}}
    bits, quantizer = content.get("first_last_bits", 8), content.get("first_last_quantizer")
    if bits is not None:
        ends = {"bits": bits} if quantizer is None else {"bits": bits, "quantizer": quantizer}
        for end in ("first", "last"):
            rules[end] = {"match": end, "weight": ends, "activation": ends if found["activation"] else inputs}
    if found["transformer"]:
        rules |= _transformer_rules(content, inputs)
    return rules


def _transformer_rules(content: Mapping[str, Any], inputs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Rules for embeddings, which not every transformer has, and for the last layer."""
    embeddings, head = content.get("embeddings", 8), content.get("head", 8)
    return {
        "embeddings": {
            "match": "type:Embedding",
            "weight": None if embeddings is None else {"bits": embeddings},
            "required": False,
        },
        "head": {
            "match": "last",
            "weight": None if head is None else {"bits": head},
            "activation": None if head is None else inputs,
        },
    }


def _dynamic(preset: re.Match[str]) -> dict[str, Any]:
    return PER_TOKEN if preset["token"] else DYNAMIC


def _rule(name: str, content: Mapping[str, Any], defaults: Mapping[str, Mapping[str, Any]]) -> Rule:
    _check_mapping(content, f"rule {name!r}")
    _check_keys(content, ("match", "weight", "activation", "required"), f"rule {name!r}")
    if "match" not in content:
        raise ValueError(f"rule {name!r} does not say which layers: add match, for example match: 'layer1.*'.")
    weight, activation = (_tensor_rule(name, key, content.get(key), defaults[key]) for key in defaults)
    return Rule(str(content["match"]), weight, activation, bool(content.get("required", True)))


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
