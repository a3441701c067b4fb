import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from qat.experiment.distillation import Distillation


def test_the_loss_is_the_formula_of_the_docstring() -> None:
    teacher, images, logits = nn.Linear(3, 5), torch.randn(7, 3), torch.randn(7, 5)
    for weight, temperature in ((0.3, 1.0), (1.0, 0.5)):
        taught = torch.softmax(teacher(images).detach() / temperature, 1)
        learned = torch.softmax(logits / temperature, 1)
        divergence = (taught * (taught / learned).log()).sum(1).mean()
        expected = (1 - weight) * 2.0 + weight * temperature**2 * divergence
        found = Distillation(teacher, weight, temperature)(images, logits, torch.tensor(2.0))
        torch.testing.assert_close(found, expected)


def test_a_student_that_equals_its_teacher_learns_nothing_from_it() -> None:
    teacher, images = nn.Linear(3, 5), torch.randn(7, 3)
    logits = teacher(images).detach().requires_grad_()
    Distillation(teacher, 1.0)(images, logits, torch.tensor(0.0)).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(7, 5), atol=1e-7, rtol=0)


def test_gradients_are_those_of_cross_entropy_with_soft_labels() -> None:
    teacher, images = nn.Linear(3, 5), torch.randn(7, 3)
    ours, theirs = (torch.ones(7, 5).mul(torch.arange(5.0)).requires_grad_() for _ in range(2))
    Distillation(teacher, 1.0)(images, ours, torch.tensor(0.0)).backward()
    F.cross_entropy(theirs, teacher(images).detach().softmax(1)).backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_teacher_is_a_frozen_copy_in_evaluation_mode() -> None:
    teacher = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).train()
    distillation = Distillation(teacher)
    assert distillation.teacher is not teacher
    assert not distillation.teacher.training
    assert teacher.training
    assert not any(p.requires_grad for p in distillation.teacher.parameters())
    assert all(p.requires_grad for p in teacher.parameters())


@pytest.mark.parametrize("value", [0.0, -1.0, 11.0, math.nan, math.inf, "1", True, None])
@pytest.mark.parametrize("option", ["weight", "temperature", "feature_weight"])
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    if option == "feature_weight" and value == 11.0:
        value = -math.inf
    options = {"weight": 0.5, "temperature": 1.0, "feature_weight": 1.0} | {option: value}
    with pytest.raises(ValueError, match=rf"^distillation\.{option}={value!r} is not "):
        Distillation(nn.Linear(1, 1), options["weight"], options["temperature"], None, options["feature_weight"])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_that_diverged_is_refused_before_training(value: float) -> None:
    teacher = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 5))
    nn.init.constant_(teacher[1].bias, value)
    with pytest.raises(
        ValueError, match=r"^the teacher of distillation, a Sequential, has NaN or infinity in '1\.bias'"
    ):
        Distillation(teacher)


def test_a_teacher_that_returns_no_tensor_is_named() -> None:
    with pytest.raises(ValueError, match=r"^the teacher returns a tuple: give one that returns logits"):
        Distillation(nn.LSTM(3, 5))(torch.randn(7, 3), torch.randn(7, 5), torch.tensor(0.0))
