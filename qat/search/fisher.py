"""The second-order estimate of what rounding does to the outputs: squared errors, weighted with the Fisher information."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qat.quantizers import Mode, Quantizer
from qat.torch_private import tree_leaves
from qat.transform.batches import call_model

DRAWS = 4
"""Labels drawn for each sample; each takes a backward."""


def fisher_harms(
    prepared: nn.Module, chosen: Iterable[Quantizer], batches: Sequence[Any], draws: int = DRAWS, seed: int = 0
) -> dict[Quantizer, float]:
    """1/2 sum_i F_ii (q(x) - x)_i^2 of each quantizer's tensor, the mean over samples.

    It is the second-order term of the Kullback-Leibler divergence between the outputs of the float network and those with this
    tensor rounded; the first-order term is zero. F_ii is the diagonal of the Fisher information of weights and of activations
    (Zandonati et al. 2022, https://arxiv.org/abs/2210.08502; for pre-activations Li et al. 2021,
    https://arxiv.org/abs/2102.05426). Differs from the paper: every element has its own F_ii, where the paper multiplies the
    mean of F_ii with the mean square error of the whole tensor.

    A label is drawn from what the network says of each sample. Gradients of samples with drawn labels are independent and
    zero on average, so the square of their sum over a batch estimates the sum of their squares, with one backward.

    Outputs that are not scores of classes count as means of normal distributions, relative to their mean square.

    Args:
        prepared: calibrated, in evaluation mode, with its quantizers off.
        chosen: the quantizers.
        batches: as for `qat.calibrate`.
        draws: labels for each sample; the more, the less noise.
        seed: of the labels.

    Raises:
        ValueError: the outputs hold no floats.
    """
    found = dict.fromkeys(chosen, 0.0)
    samples, size = 0, 0.0
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        for batch in batches:
            with torch.enable_grad(), _watching(found) as seen:
                outputs = _scores(call_model(prepared, batch))
                tensors = [(q, x) for q, values in seen.items() for x in values]
                squares = [torch.zeros_like(x) for _, x in tensors]
                for _ in range(draws):
                    loss = _loss_of_drawn_labels(outputs)
                    gradients = torch.autograd.grad(loss, [x for _, x in tensors], retain_graph=True, allow_unused=True)
                    for total, gradient in zip(squares, gradients, strict=True):
                        total += 0 if gradient is None else gradient.square() / draws
            samples += len(outputs) if outputs.ndim else 1
            size += float(outputs.detach().square().sum())
            for (quantizer, x), square in zip(tensors, squares, strict=True):
                found[quantizer] += 0.5 * float((square * _error(quantizer, x.detach()).square()).sum())
    unit = samples if _is_of_classes(outputs) else size / 2
    return {quantizer: harm / max(unit, 1e-12) for quantizer, harm in found.items()}


@contextmanager
def _watching(chosen: Iterable[Quantizer]) -> Iterator[dict[Quantizer, list[Tensor]]]:
    """Inside the `with`, what each quantizer returns is kept, as a tensor that has a gradient."""
    seen: dict[Quantizer, list[Tensor]] = {quantizer: [] for quantizer in chosen}

    def keep(quantizer: nn.Module, inputs: Any, output: Any) -> Any:
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        kept = output.view_as(output) if output.requires_grad else output.detach().requires_grad_()
        assert isinstance(quantizer, Quantizer)
        seen[quantizer].append(kept)
        return kept

    hooks = [quantizer.register_forward_hook(keep) for quantizer in seen]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def _scores(returned: Any) -> Tensor:
    """The first floating-point tensor of the outputs."""
    for x in tree_leaves(returned):
        if isinstance(x, Tensor) and x.is_floating_point():
            return x
    raise ValueError("the outputs of the network hold no floats, so that nothing can be estimated: return the scores.")


def _is_of_classes(outputs: Tensor) -> bool:
    return outputs.ndim == 2 and outputs.shape[1] > 1


def _loss_of_drawn_labels(outputs: Tensor) -> Tensor:
    """The negative log-likelihood, summed over samples, of labels that are drawn as the outputs say."""
    if _is_of_classes(outputs):
        labels = torch.multinomial(outputs.detach().softmax(1), 1).flatten()
        return F.cross_entropy(outputs, labels, reduction="sum")
    return 0.5 * (outputs - (outputs + torch.randn_like(outputs)).detach()).square().sum()


def _error(quantizer: Quantizer, x: Tensor) -> Tensor:
    """What rounding changes."""
    quantizer.mode = Mode.QUANTIZE
    try:
        with torch.no_grad():
            return quantizer(x) - x
    finally:
        quantizer.mode = Mode.OFF
