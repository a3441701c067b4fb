from collections import UserDict, namedtuple
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import qat
from qat.transform.batches import call_model, call_of, positional_arguments


class Encoder(nn.Module):
    """Called as Hugging Face networks are."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 2)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        h = self.embedding(input_ids)
        return self.head(h if attention_mask is None else h * attention_mask[..., None]) * scale


class Image(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x)


@dataclass
class Sample:
    label: Tensor
    image: Tensor


Named = namedtuple("Named", ["attention_mask", "input_ids"])
ids, mask = torch.arange(6).reshape(2, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
image, label = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)


@pytest.mark.parametrize(
    "batch",
    [
        {"labels": label, "attention_mask": mask, "input_ids": ids},
        UserDict({"attention_mask": mask, "input_ids": ids, "labels": label}),
        ({"input_ids": ids, "attention_mask": mask}, label),
        Named(mask, ids),
        [ids, mask],
    ],
    ids=["dict", "mapping", "dict and labels", "namedtuple", "list"],
)
def test_forward_gets_what_it_takes(batch: Any) -> None:
    model = Encoder()
    expected = model(ids, mask)
    assert torch.equal(call_model(model, batch), expected)
    arguments = positional_arguments(model, batch)
    assert len(arguments) == 2
    assert arguments[0] is ids
    assert arguments[1] is mask
    prepared = qat.prepare(model, qat.load_policy("w8a8"), (ids, mask))
    qat.calibrate(prepared, [batch])  # integer tensors pass unchanged
    assert prepared(ids, mask).isfinite().all()


def test_an_optional_argument_is_not_ignored() -> None:
    prepared = qat.prepare(Encoder(), qat.load_policy("w8a8"))
    with pytest.raises(ValueError, match="attention_mask is a tensor, and the graph was made with attention_mask=None"):
        qat.calibrate(prepared, [{"attention_mask": mask, "input_ids": ids}])


@pytest.mark.parametrize(
    "batch",
    [image, (image, label), {"label": label, "image": image}, Sample(label, image), {"x": image, "y": label}],
    ids=["tensor", "tuple", "other names", "dataclass", "names"],
)
def test_one_image_is_found(batch: Any) -> None:
    model = Image()
    assert torch.equal(call_model(model, batch), model(image))


def test_none_numbers_and_defaults_are_handed_on() -> None:
    model = Encoder()
    assert call_of(model, {"input_ids": ids, "attention_mask": None, "scale": 2.0}).kwargs["attention_mask"] is None
    assert positional_arguments(model, {"input_ids": ids, "scale": 2.0})[1:] == (None, 2.0)


def test_a_missing_argument_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"a batch has 'attention_mask', 'labels', but forward of Encoder needs 'input_ids'"
    ):
        call_model(Encoder(), {"attention_mask": mask, "labels": label})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((2, 4), np.float32), r"a batch is a numpy array: write a tensor, torch.as_tensor\(x\)"),
        (None, "a batch is None"),
        (3, "a batch is an int"),
        ("x", "a batch is a str"),
        ([np.zeros((2, 4))], r"argument 0 of a batch is a numpy array: write torch.as_tensor\(x\)"),
        ({"input": np.zeros((2, 4))}, "argument input of a batch is a numpy array"),
        (
            torch.zeros(2, 4, dtype=torch.float64),
            r"Linear cannot run on calibration batch 1 \(.*\): write batches as its",
        ),
        (torch.zeros(2, 5), "Linear cannot run on calibration batch 1"),
        ([[1.0, 2.0, 3.0, 4.0]], "Linear cannot run on calibration batch 1"),
    ],
)
def test_a_batch_that_the_network_cannot_take_is_one_sentence(batch: Any, message: str) -> None:
    prepared = qat.prepare(nn.Linear(4, 2), "w8a8")
    with pytest.raises(ValueError, match=message) as caught:
        qat.calibrate(prepared, [torch.ones(2, 4), batch])
    assert "\n" not in str(caught.value)


class WithOptions(nn.Module):
    """As the networks of transformers: names first, anything behind."""

    def forward(self, input_ids: torch.Tensor, mask: Any = None, labels: Any = None, **options: Any) -> torch.Tensor:
        return input_ids if mask is None else input_ids * mask


class ByName(nn.Module):
    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        return scale * x


def test_names_before_further_options_have_a_position() -> None:
    found = positional_arguments(WithOptions(), {"labels": label, "input_ids": ids})
    assert [x is y for x, y in zip(found, (ids, None, label), strict=True)] == [True] * 3
    with pytest.raises(
        ValueError, match=r"forward of WithOptions takes 'other' by name alone, so that it has no position"
    ):
        positional_arguments(WithOptions(), {"input_ids": ids, "other": 1})
    with pytest.raises(
        ValueError, match=r"a batch has 'mask', but forward of WithOptions needs 'input_ids', too: add it"
    ):
        positional_arguments(WithOptions(), {"mask": mask})
    with pytest.raises(ValueError, match=r"forward of ByName takes 'scale' by name alone"):
        positional_arguments(ByName(), {"x": image, "scale": 2.0})
