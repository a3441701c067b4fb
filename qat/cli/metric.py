"""What a command measures with labels: accuracy, an error, or a function of the user's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qat.cli.errors import UsageError
from qat.cli.sources.data import Data
from qat.cli.sources.python_file import from_python_file, names_python, users_code
from qat.export.decisions import class_axis, decisions, is_binary
from qat.report.text_of_numbers import format_count

IGNORED = -100
"""The label of what does not count, as torch's losses have it."""


@dataclass(frozen=True)
class Metric:
    """What is measured with labels.

    Attributes:
        name: in tables.
        score: (outputs, labels) -> mean over what counts.
        mode: which way is better.
        percent: it is a fraction.
        count: (labels) -> how many count.
    """

    name: str
    score: Callable[[Tensor, Tensor], float]
    mode: str = "max"
    percent: bool = False
    count: Callable[[Tensor], int] = len


METRICS = ("accuracy", "mae", "mse")


def check_metric(text: str | None) -> None:
    """Check that there is a metric of this name, before anything is loaded.

    Raises:
        UsageError: there is none, or its file does not have it.
    """
    if text is None or text in METRICS:
        return
    if not names_python(text):
        raise UsageError(f"--metric {text} does not exist: write {', '.join(METRICS)}, or file.py:function.")
    from_python_file(text)


def metric_named(text: str | None, data: Data, output: Tensor) -> Metric | None:
    """The metric of this name; by default the accuracy of classes, the mean absolute error of other targets.

    Args:
        text: accuracy, mae, mse, or file.py:function of (outputs, targets). None: see above.
        data: without labels there is no metric.
        output: of a batch, which says how many classes there are.

    Raises:
        UsageError: there is no such metric, or the labels do not fit the outputs.
    """
    labels = next(iter(data.test)).labels
    if labels is None:
        if text is not None:
            raise UsageError(f"--metric {text} needs labels, and --data {data.name} has none.")
        return None
    name = text or ("accuracy" if are_classes(labels, output) else "mae")
    if names_python(name):
        function = from_python_file(name)
        return Metric(name.rpartition(":")[2], partial(_own_score, name, function))
    known: dict[str, Metric] = {
        "accuracy": Metric("accuracy", _accuracy, percent=True, count=lambda labels: int((labels != IGNORED).sum())),
        "mae": Metric("mae", lambda x, y: float((x.double() - y.reshape(x.shape).double()).abs().mean()), "min"),
        "mse": Metric("mse", lambda x, y: float((x.double() - y.reshape(x.shape).double()).square().mean()), "min"),
    }
    check_metric(name)
    answers = decisions(output) if name == "accuracy" else output
    if answers.numel() != labels.numel():
        raise UsageError(
            f"the labels of --data {data.name} have the shape {tuple(labels.shape)}, and {name} needs {tuple(answers.shape)}, "
            "one for each answer of the model: give such labels, or none."
        )
    if name == "accuracy":
        check_all_classes(data, output)
    return known[name]


def are_classes(labels: Tensor, output: Tensor) -> bool:
    """Whether labels are numbers of classes, rather than what the outputs should be."""
    return not labels.is_floating_point() and labels.ndim == output.ndim - 1


def check_classes(data: Data, labels: Tensor, output: Tensor) -> None:
    """Check that each label is a class of which the output has a number.

    Raises:
        UsageError: one is not.
    """
    outputs = 1 if is_binary(output) else output.shape[class_axis(output)]
    count = 2 if is_binary(output) else outputs
    counted = labels[labels != IGNORED]
    wrong = counted[(counted < 0) | (counted >= count)]
    if wrong.numel():
        raise UsageError(
            f"a label of --data {data.name} is {wrong[0].item()}, and the model has "
            f"{format_count(outputs, 'output')}: give data of its classes, such as --model torchvision:resnet18,num_classes=10."
        )


def check_all_classes(data: Data, output: Tensor) -> None:
    """`check_classes` of all test samples; images in folders are not read for it.

    Raises:
        UsageError: a label is not a class.
    """
    if data.classes is not None:
        check_classes(data, torch.arange(data.classes), output)
        return
    for batch in data.test:
        if batch.labels is not None:
            check_classes(data, batch.labels, output)


def _own_score(name: str, function: Callable[[Tensor, Tensor], Any], outputs: Tensor, labels: Tensor) -> float:
    with users_code(f"--metric {name} gives no number", ": write a function of (outputs, labels) that returns one"):
        return float(function(outputs, labels))


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    counted = labels != IGNORED
    return float((decisions(outputs).reshape(labels.shape) == labels)[counted].double().mean())
