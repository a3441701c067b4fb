"""Models that no quantizer can be put into are refused in a sentence; what cannot be copied is shared."""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import qat


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        return torch.jit.script(network())


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: torch.compile(network(), backend="eager"), r"compiled \(.* of a Sequential\): .* model\._orig_mod"),
        (scripted, r"^the model is a RecursiveScriptModule of torch\.jit, .* before it was scripted"),
        (lambda: nn.Sequential(nn.Linear(4, 4), scripted()), r"^1 is a RecursiveScriptModule of torch\.jit"),
        (
            lambda: nn.Sequential(nn.LazyLinear(3), nn.ReLU()),
            r"^0\.weight of a LazyLinear has no size yet: run the model",
        ),
        (
            lambda: nn.Sequential(nn.LazyBatchNorm1d(), nn.Linear(3, 3)),
            r"^0\.weight of a LazyBatchNorm1d has no size yet",
        ),
    ],
    ids=["compiled", "scripted", "scripted inside", "lazy", "lazy norm"],
)
def test_models_without_layers_to_change_are_refused(build: Callable[[], nn.Module], sentence: str) -> None:
    model = build()
    for inplace in (False, True):
        with pytest.raises(ValueError, match=sentence):
            qat.prepare(model, "w8a8", torch.randn(3, 4), inplace=inplace)


class Locked(nn.Module):
    """Holds a lock and a generator beside its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = network()
        self.shared: dict[str, Any] = {"lock": threading.Lock(), "last": torch.ones(2), "parts": [self.layers]}
        self.numbers = (i for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_what_cannot_be_copied_belongs_to_both() -> None:
    model, x = Locked(), torch.randn(3, 4)
    prepared: Any = qat.prepare(model, "w8a8", x)
    assert prepared.shared["lock"] is model.shared["lock"]
    assert prepared.numbers is model.numbers
    assert prepared.shared["parts"][0] is prepared.layers
    assert prepared.layers is not model.layers
    assert prepared.shared["last"] is not model.shared["last"]


class NoCopy(nn.Linear):
    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("only one of me")


def test_a_module_that_has_no_copy_is_named() -> None:
    with pytest.raises(ValueError, match=r"^Sequential cannot be copied \(only one of me\): let copy\.deepcopy"):
        qat.prepare(nn.Sequential(NoCopy(2, 2)), "w8a8")
