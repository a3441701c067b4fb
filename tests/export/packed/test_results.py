"""An integer model that comes back from a folder returns the same classes as before."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import qat
from qat.structure import Names, NotPlainError, build_result, describe_result
from qat.torch_private import tree_flatten


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclass
class Detections:
    scores: Any
    more: Any = None


class Head(nn.Module):
    """`len` of an input is what torch.fx does not trace, so that torch.export does."""

    def __init__(self, output: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.output, self.layer = output, nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        y = self.layer(x) if len(x) else x
        return self.output(y, y.relu())


@pytest.mark.parametrize(
    "output",
    [Pair, Detections, lambda y, z: Detections(Pair(y, None), {"k": [z]}), lambda y, z: (OrderedDict(out=y), z)],
    ids=["named tuple", "dataclass", "nested", "ordered dict"],
)
def test_it_returns_the_same_classes(output: Callable[[Tensor, Tensor], Any], tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    prepared = qat.prepare(Head(output), "w8a8", (x,))
    qat.calibrate(prepared, [(x,)])
    integer = qat.convert(prepared)
    found = qat.load_quantized(qat.save_quantized(integer, tmp_path), allow=[Pair, Detections])(x)
    (leaves, spec), (expected, structure) = tree_flatten(found), tree_flatten(integer(x))
    assert spec == structure
    assert all(a is b or torch.equal(a, b) for a, b in zip(leaves, expected, strict=True))


def test_a_class_of_ones_own_has_to_be_passed(tmp_path: Path) -> None:
    x = torch.randn(4, 8)
    prepared = qat.prepare(Head(Detections), "w8a8", (x,))
    qat.calibrate(prepared, [(x,)])
    qat.save_quantized(qat.convert(prepared), tmp_path)
    with pytest.raises(ValueError, match=r"returns .*\.Detections, .* pass it, allow=\[Detections\]\.$"):
        qat.load_quantized(tmp_path)


@pytest.mark.parametrize("path", ["transformers.utils.generic.ContextManagers", "subprocess.Popen", "builtins.dict"])
def test_a_file_names_no_other_classes(path: str) -> None:
    with pytest.raises(ValueError, match="which a file may not name"):
        build_result({"made": path, "fields": [["args", None]]}, Names())


def test_what_is_no_collection_of_fields_is_refused_when_it_is_saved() -> None:
    with pytest.raises(NotPlainError, match=r"the key \(1, 2\)"):
        describe_result(tree_flatten({"a": torch.ones(1), (1, 2): torch.ones(1)})[1])


def test_a_named_tuple_of_the_older_kind() -> None:
    kind = namedtuple("kind", "a b")
    spec = tree_flatten([kind(torch.ones(1), {2: torch.ones(1)})])[1]
    assert build_result(describe_result(spec), Names([kind])) == spec
