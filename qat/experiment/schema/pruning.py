"""The schema of `pruning`: zeros in weights."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, model_validator

from qat.experiment.schema.nodes import wrong
from qat.experiment.schema.values import Count, Says, Section, ShareBelowOne, Text


def _pattern(value: str) -> str:
    if not re.fullmatch(r"\d+:\d+", value) or not 1 <= int(value.split(":")[0]) < int(value.split(":")[1]) <= 64:
        raise ValueError
    return value


class Pruning(Section):
    """Weights that become zero during QAT and stay zero; without sparsity and pattern none do (docs/pruning.md)."""

    sparsity: ShareBelowOne | None
    """fraction of the weights that are zero at the end"""
    pattern: Annotated[str, AfterValidator(_pattern), Says("how many of how many neighbours stay, as '2:4'")] | None
    """instead of a sparsity, at most N of M neighbouring inputs are not zero"""
    scope: Annotated[str, Field(pattern="^(layer|global)$"), Says("layer or global")]
    """layer: every layer has this fraction of zeros; global: all layers together have it"""
    begin: ShareBelowOne
    """fraction of the run after which pruning begins"""
    end: ShareBelowOne
    """fraction of the run after which no further weight is pruned"""
    every: Count
    """optimizer steps between two updates of the masks"""
    match: list[Text]
    """layers that are pruned: globs on names, or type:NAME"""
    exclude: list[Text]
    """layers that are not pruned, written likewise; also first and last"""

    channels: ShareBelowOne
    """fraction of the output channels that are removed before QAT, where no add or concatenation needs them"""

    @model_validator(mode="after")
    def _check_one(self) -> Pruning:
        if self.sparsity is not None and self.pattern is not None:
            raise wrong(
                "{key}={value} beside a pattern, which has a sparsity of its own: write one of the two.", "sparsity"
            )
        if self.scope == "global" and self.pattern is not None:
            raise wrong("{key}=global beside a pattern, which holds in every group: write layer.", "scope")
        if not self.begin < self.end:
            raise wrong(f"{{key}}={{value}} is not before pruning.end={self.end}: write shares that rise.", "begin")
        return self
