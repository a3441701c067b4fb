"""What a mistyped key may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

IN_POLICY = "policy.preset=w4a8, or the bits of a rule, policy.rules={NAME: {match: 'layer1.*', weight: {bits: 4}}}"
ELSEWHERE = {f"policy.{what}.bits": IN_POLICY for what in ("weight", "activation")}
"""Keys that suggest themselves, and what to write instead."""


def unknown_key(key: str, known: Sequence[str], owner: str = "") -> str:
    """One sentence about a key that does not exist, with the nearest one by edit distance.

    Args:
        key: its dotted name.
        known: dotted names that exist.
        owner: whose key it would be, where that is not plain from its name.

    >>> unknown_key("receipe", ["freeze", "recipe"])
    'unknown key receipe; did you mean recipe?'
    >>> unknown_key("lr", ["optim.lr", "seed"])
    'unknown key lr; did you mean optim.lr?'
    """
    if key in ELSEWHERE:
        return f"unknown key {key}: write {ELSEWHERE[key]}."
    whose = f" of {owner}" if owner else ""
    prefix, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == prefix}
    order = sorted(known, key=lambda k: (k.startswith(f"{prefix}."), -k.count(".")))
    by_name = {k.rpartition(".")[2]: k for k in order}  # of equals, the one below the same key, then the shortest
    near = [siblings[n] for n in difflib.get_close_matches(name, siblings, n=1)]
    near += [by_name[n] for n in difflib.get_close_matches(name, by_name, n=1, cutoff=0.9 if siblings else 0.75)]
    where = f"{prefix} has the keys" if prefix and siblings else "the top-level keys are"
    listed = f"{where} {', '.join(sorted(siblings or {k for k in known if '.' not in k})) or 'none'}"
    if near and prefix and siblings and not near[0].startswith(f"{prefix}."):
        return f"unknown key {key}{whose}; {listed}; did you mean {near[0]}?"
    if near:
        return f"unknown key {key}{whose}; did you mean {near[0]}?"
    if owner and not known:
        return f"unknown key {key}{whose}, which takes no arguments."
    return f"unknown key {key}{whose}; {listed}."
