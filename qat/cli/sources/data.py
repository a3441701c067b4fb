"""From the spelling of data to batches."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from qat.cli.errors import UsageError, usage_errors
from qat.cli.sources import arrays
from qat.cli.sources.model import Model
from qat.cli.sources.python_file import called, names_python, users_code
from qat.cli.sources.spellings import DATA
from qat.messages import type_of
from qat.torch_private import tree_leaves
from qat.transform.batches import float_parts, is_usable, not_finite_sentence

NOISE = "NOISE, not data: the file is right, its ranges fit nothing real. Quantize again with --data of your own"
KNOWN = ("digits", "mnist", "cifar10")


class Batch(NamedTuple):
    """Inputs of a model (a tensor, a tuple or a mapping), and labels or targets, if there are any."""

    inputs: Any
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(first_tensor(self.inputs))


class Batches:
    """Batches that can be iterated again and again, up to a number of samples. Each is checked as it passes.

    Args:
        source: gives them anew.
        limit: how many samples at most; None: all.
        name: what `--data` says.
    """

    def __init__(self, source: Callable[[], Iterable[Batch]], limit: int | None = None, name: str = "") -> None:
        self.source, self.limit, self.name = source, limit, name
        self.samples = 0
        """How many samples the longest pass had."""

    def __iter__(self) -> Iterator[Batch]:
        left, seen = self.limit, 0
        for batch in self.source():
            _check(batch, self.name)
            if left is not None and len(batch) > left:
                batch = cut(batch, left)
            seen += len(batch)
            self.samples = max(self.samples, seen)
            yield batch
            if left is not None and (left := left - len(batch)) <= 0:
                return

    def inputs(self, most: int | None = None) -> list[Any]:
        """The inputs of all batches, or of about `most` samples, in memory."""
        kept, samples = [], 0
        for batch in self:
            kept.append(batch.inputs)
            samples += len(batch)
            if most is not None and samples >= most:
                break
        return kept


@dataclass
class Data:
    """Data as the command line names them.

    Attributes:
        name: as they were given.
        train: batches to calibrate and train with.
        test: batches to measure and verify with.
        noise: whether they are noise.
        same: whether both are the same samples.
        classes: how many there are, if labels are classes of images.
        notes: sentences for the report.
    """

    name: str
    train: Batches
    test: Batches
    noise: bool = False
    same: bool = False
    classes: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def labelled(self) -> bool:
        """Whether the test batches have labels."""
        return next(iter(self.test)).labels is not None


@dataclass(frozen=True)
class Sizes:
    """How many samples: for calibration or training (None: all), for tests (None: all), in a batch; of images, pixels."""

    train: int | None = 128
    test: int | None = 512
    batch: int = 32
    image: int | None = None


def load_data(text: str, model: Model, sizes: Sizes, shape: tuple[int, ...] | None = None) -> Data:
    """The data that `text` names, as inputs of a model.

    Args:
        text: see `spellings.DATA`.
        model: says how images become its inputs.
        sizes: how many.
        shape: of one sample, of noise for a model that does not say what it takes.

    Raises:
        UsageError: there are no such data, or they do not fit the model.
    """
    with usage_errors():
        data = _read(text, model, sizes, shape)
        data.train.limit, data.test.limit = sizes.train, sizes.test
        data.train.name = data.test.name = text
        first = next(iter(data.train), None)
        if first is None:
            raise UsageError(f"--data {text} has no batches: give some.")
    return data


def _read(text: str, model: Model, sizes: Sizes, shape: tuple[int, ...] | None) -> Data:
    if text == "random":
        _refuse_size(text, sizes)
        return noise(model, sizes, shape)
    if shape is not None:
        raise UsageError(f"--input-shape is the shape of noise, and there is --data {text}: leave one of them out.")
    if text in KNOWN or Path(text).expanduser().is_dir():
        from qat.cli.sources import images

        found = images.open_images(text, images.wanted(model, sizes.image), sizes.batch)
        train, test = (Batches(partial(_from_pairs, pairs)) for pairs in (found.train, found.test))
        return Data(text, train, test, same=found.same, classes=found.classes, notes=found.notes)
    _refuse_size(text, sizes)
    if text.endswith(".npz"):
        return _split(
            text, Batches(lambda: (Batch(*pair) for pair in arrays.batches_of(text, model.network, sizes.batch)))
        )
    if names_python(text):
        return _split(text, Batches(lambda: _own_batches(text, model)))
    what = "of no kind that is read" if Path(text).expanduser().is_file() else "neither a file nor a name"
    raise UsageError(f"--data {text} is {what}: write {', '.join(DATA)}.")


def _refuse_size(text: str, sizes: Sizes) -> None:
    """Only files of images can be scaled."""
    if sizes.image is not None:
        remedy = "write --input-shape" if text == "random" else "leave it out"
        raise UsageError(f"--image-size scales images, and --data {text} has none: {remedy}.")


def noise(model: Model, sizes: Sizes, shape: tuple[int, ...] | None = None) -> Data:
    """Normally distributed numbers in the shape of the model's example."""
    example = model.example if shape is None else torch.zeros(1, *shape)
    if example is None:
        raise UsageError(
            f"what {model.name} takes is not known: add --input-shape, such as --input-shape 3,224,224, or give the module an "
            "attribute example_inputs."
        )

    def make(seed: int, samples: int | None) -> Iterator[Batch]:
        generator = torch.Generator().manual_seed(seed)
        for start in range(0, samples or sizes.batch, sizes.batch):
            size = min(sizes.batch, (samples or sizes.batch) - start)
            yield Batch(map_tensors(example, partial(_noise_like, size=size, generator=generator)))

    train, test = Batches(lambda: make(0, sizes.train)), Batches(lambda: make(1, sizes.test))
    return Data("random", train, test, noise=True, notes=[NOISE])


def _noise_like(x: Tensor, size: int, generator: torch.Generator) -> Tensor:
    shape = (size, *x.shape[1:])
    if x.is_floating_point():
        return torch.randn(shape, generator=generator).to(x.dtype)
    if bool((x == x.flatten()[0]).all()):  # masks, positions
        return x[:1].expand(shape).clone()
    return torch.randint(int(x.min()), int(x.max()) + 1, shape, generator=generator).to(x.dtype)


def _own_batches(text: str, model: Model) -> Iterator[Batch]:
    """What the user's function yields: inputs, or (inputs, labels)."""
    given = called(text, "batches")
    if not isinstance(given, Iterable) or isinstance(given, Tensor | dict):
        raise UsageError(f"{text} gives {type_of(given)}: write a function that yields batches.")
    batches = iter(given)
    while True:
        with users_code(
            f"{text} gives no batch", ": write a function that yields inputs, or (inputs, labels), in arrays"
        ):
            batch = next(batches, None)
            if batch is None:
                return
            inputs, labels = arrays.without_labels(batch, model.network)
        yield Batch(map_tensors(inputs, arrays.in_float32), labels)


def _check(batch: Batch, name: str) -> None:
    """Refuse a batch without samples, and numbers of which every result would be NaN."""
    tensors = tensors_of(batch.inputs)
    if not tensors or not tensors[0].ndim:
        raise UsageError(
            f"a batch of --data {name} has no inputs whose first axis is samples: give arrays (N, ...), and labels behind them."
        )
    if not len(batch):
        raise UsageError(f"a batch of --data {name} has no samples: leave it out.")
    for part, x in [*float_parts(batch.inputs), *float_parts(batch.labels, "labels")]:
        if not bool(is_usable(x)):
            raise UsageError(not_finite_sentence(f"--data {name}", part))


def _split(name: str, all_batches: Batches) -> Data:
    """Every second batch is for tests; of one batch, all samples are for both."""
    several = len(list(itertools.islice(all_batches.source(), 2))) > 1
    if not several:
        note = "calibrated and tested with the same samples: there is one batch"
        return Data(name, Batches(all_batches.source), Batches(all_batches.source), same=True, notes=[note])
    train, test = (Batches(partial(_every_second, all_batches, start)) for start in (0, 1))
    return Data(name, train, test, notes=["every second batch calibrates, the others test"])


def _every_second(batches: Batches, start: int) -> Iterator[Batch]:
    return itertools.islice(iter(batches.source()), start, None, 2)


def _from_pairs(pairs: Callable[[], Iterable[tuple[Any, Tensor | None]]]) -> Iterator[Batch]:
    return (Batch(*pair) for pair in pairs())


def first_tensor(inputs: Any) -> Tensor:
    """The first tensor of inputs, which says how many samples there are."""
    return tensors_of(inputs)[0]


def tensors_of(inputs: Any) -> list[Tensor]:
    """All tensors of inputs, nested or not."""
    return [x for x in tree_leaves(inputs) if isinstance(x, Tensor)]


def map_tensors(inputs: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The same inputs with every tensor mapped."""
    if isinstance(inputs, Tensor):
        return function(inputs)
    if isinstance(inputs, dict):
        return {key: map_tensors(value, function) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(map_tensors(value, function) for value in inputs)
    return inputs


def cut(batch: Batch, size: int) -> Batch:
    """The first samples of a batch."""
    labels = None if batch.labels is None else batch.labels[:size]
    return Batch(map_tensors(batch.inputs, lambda x: x[:size] if x.ndim else x), labels)
