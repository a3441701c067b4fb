"""Features that a student learns from its teacher, layer by layer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.capture import copy_model
from qat.contexts import training_mode


class FeatureHints(nn.Module):
    """The distance of features: the mean over images of ||s / ||s|| - t / ||t||||^2, summed over pairs of layers.

    Normalized, so that it does not matter how large features are in each network, nor that quantized ones are clipped. If the
    teacher's layer has other channels, a 1 x 1 projection of the student's learns with it (the regressor of FitNets, Romero et
    al. 2015, https://arxiv.org/abs/1412.6550, section 2.2); pictures are averaged to the smaller size of the two.

    Differs from the paper: features are normalized, and hints are part of one training, not a stage before it.

    Args:
        student: in float, or prepared: a layer has the same name in both.
        teacher: any network on the same images.
        pairs: layers, as "student_layer:teacher_layer", or one name for both. A layer is a module that has no others inside:
            in a prepared network the others do not run as modules.
        example: a batch of images, whose values do not count.

    Raises:
        ValueError: a layer does not exist, contains others, or does not run once in a forward.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, pairs: Sequence[str], example: Tensor) -> None:
        super().__init__()
        self.pairs = [(pair.partition(":")[0], pair.partition(":")[2] or pair) for pair in pairs]
        of_student = _features(copy_model(student), [name for name, _ in self.pairs], example, "the network")
        of_teacher = _features(copy_model(teacher), [name for _, name in self.pairs], example, "the teacher")
        self.channels = [of_student[mine].shape[1] for mine, _ in self.pairs]
        self.projections = nn.ModuleList()
        for mine, theirs in self.pairs:
            s, t = of_student[mine], of_teacher[theirs]
            if s.ndim != t.ndim or s.ndim not in (2, 4):
                raise ValueError(
                    f"distillation.features: {mine} gives {tuple(s.shape)} and {theirs} {tuple(t.shape)}: name layers that "
                    "both give (N, C) or (N, C, H, W)."
                )
            same = s.shape[1] == t.shape[1]
            maker: Any = nn.Linear if s.ndim == 2 else _pointwise
            self.projections.append(nn.Identity() if same else maker(s.shape[1], t.shape[1]))

    def forward(self, student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
        """The distance, a scalar, from the features by the names of their layers.

        Raises:
            ValueError: the student's layer has lost channels.
        """
        distances = []
        for (mine, theirs), channels, projection in zip(self.pairs, self.channels, self.projections, strict=True):
            if student[mine].shape[1] != channels:
                raise ValueError(
                    f"distillation.features: {mine} had {channels} channels and has {student[mine].shape[1]}, because "
                    "pruning.channels took some out: name a layer that keeps its channels, such as the last of a block."
                )
            s, t = projection(student[mine]), teacher[theirs]
            if s.ndim == 4 and s.shape[2:] != t.shape[2:]:
                size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
                s, t = F.adaptive_avg_pool2d(s, size), F.adaptive_avg_pool2d(t, size)
            difference = F.normalize(s.flatten(1), dim=1) - F.normalize(t.flatten(1), dim=1)
            distances.append(difference.square().sum(1).mean())
        return torch.stack(distances).sum()


@contextmanager
def watching(network: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside the `with`, the last output of each of these layers by name: copies, which no operation in place changes."""
    found: dict[str, Tensor] = {}

    def keep(name: str, output: Any) -> None:
        found[name] = output.clone() if isinstance(output, Tensor) else output

    hooks = [
        network.get_submodule(name).register_forward_hook(lambda _m, _i, output, name=name: keep(name, output))
        for name in dict.fromkeys(names)
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _features(network: nn.Module, names: Sequence[str], example: Tensor, which: str) -> dict[str, Tensor]:
    modules = dict(network.named_modules())
    for name in names:
        if name not in modules or any(True for _ in modules[name].children()):
            known = [n for n, m in modules.items() if n and not any(True for _ in m.children())]
            raise ValueError(
                f"distillation.features: {name!r} is not a layer of {which}: write names such as {', '.join(known[-4:])}."
            )
    runs = Counter[str]()
    for name in dict.fromkeys(names):  # the network is a copy that is thrown away, hooks and all
        modules[name].register_forward_hook(lambda _m, _i, _o, name=name: runs.update([name]))
    with torch.no_grad(), training_mode(network, False), watching(network, names) as found:
        network(example)
    if twice := [name for name in names if runs[name] > 1]:
        raise ValueError(
            f"distillation.features: {twice[0]!r} of {which} runs {runs[twice[0]]} times, and gives as many features: name a "
            "layer that runs once."
        )
    if missing := [name for name in names if not isinstance(found.get(name), Tensor)]:
        raise ValueError(
            f"distillation.features: {missing[0]!r} of {which} does not run, or gives no tensor: name another."
        )
    return found


def _pointwise(inputs: int, outputs: int) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 1, bias=False)
