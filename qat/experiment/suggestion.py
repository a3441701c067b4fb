"""What a mistyped key may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


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
    whose = f" of {owner}" if owner else ""
    prefix, _, name = key.rpartition(".")
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == prefix}
    by_name = {k.rpartition(".")[2]: k for k in sorted(known, key=lambda k: -k.count("."))}  # of equals, the shortest
    near = [siblings[n] for n in difflib.get_close_matches(name, siblings, n=1)]
    near += [by_name[n] for n in difflib.get_close_matches(name, by_name, n=1, cutoff=0.9 if siblings else 0.75)]
    if near:
        return f"unknown key {key}{whose}; did you mean {near[0]}?"
    where = f"{prefix} has the keys" if prefix and siblings else "the top-level keys are"
    if owner and not known:
        return f"unknown key {key}{whose}, which takes no arguments."
    listed = siblings or {k for k in known if "." not in k}
    return f"unknown key {key}{whose}; {where} {', '.join(sorted(listed)) or 'none'}."
