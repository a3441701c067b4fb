"""Give quantizers their first range: values only, in place."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qat.arguments import check_function
from qat.contexts import training_mode
from qat.nn import quantized_weights
from qat.quantizers import Mode, Quantizer
from qat.transform.batches import UnfitBatchError, call_model, call_of, float_parts, is_usable, not_finite_sentence
from qat.transform.distributed import check_same_quantizers, gather, merge_observers
from qat.transform.guessed_ranges import guess_ranges
from qat.transform.mode import mode, quantizers
from qat.transform.multiply_adds import counting_first_call


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], object] | None = None,
    *,
    again: bool | str | Sequence[str] = False,
) -> int:
    """Run `batches` through the float network and set the range of every quantizer that has none yet. In place.

    The model runs in evaluation mode without gradients (BatchNorm keeps its statistics), and every quantizer sees float
    tensors. Ranges that were calibrated, learned or loaded before stay, unless they are in `again`. Training modes are
    restored. A quantizer that only numbers, 0-d, integer or bool tensors reach passes them unchanged and needs no range.

    With a process group (DDP) every process must call it, with the same weights and its own share of the batches, which may
    be empty. The observations of all processes are merged, so that all set the same ranges, to the bit: those that one
    process would find with all the batches (up to the order of summation for MeanAbs; MovingAverage depends on the order of
    the batches).

    Args:
        model: a prepared module.
        batches: model inputs. Each batch is a tensor, a sequence of arguments, or a mapping, dataclass or namedtuple with
            their names; what forward does not take, such as labels, is ignored (`qat.transform.batches.call_of`).
        forward: runs the model on a batch, if that is not how it is called.
        again: which quantizers get a new range although they have one: True for all, or globs on their names
            (`quantizers(model)`), such as "sites.*" or ["fc.weight_quantizer"]. If calibration fails they keep the old one.

    Returns:
        The number of quantizers that were calibrated; if it is 0, no batch was consumed.

    Raises:
        ValueError: the model has no quantizers, a batch holds NaN or infinity (a mask of 0 and -inf may), a quantizer saw NaN
            or no data (no batches, or a layer that never runs), or a name in `again` is that of none.
        RuntimeError: the processes do not have the same quantizers to calibrate.
    """
    check_batches(batches)
    if forward is not None:
        check_function("forward", forward, "of (model, batch)")
    found = quantizers(model)
    if not found:
        raise ValueError("the model has no quantizers: call qat.prepare(model, policy) first and calibrate its result.")
    repeated = _chosen(found, again)
    chosen = {name: q for name, q in found.items() if name in repeated or not q.ready}
    check_same_quantizers(chosen)
    if not chosen:
        return 0
    for quantizer in chosen.values():
        quantizer.reset_observers()  # drops what a failed calibration left behind
    with torch.no_grad(), training_mode(model, False), _observing_anew(repeated.values()):
        with mode(model, Mode.OBSERVE), _weight_quantizers_off(model):
            fault = _observe(model, batches, forward)
        for sentence in filter(None, gather(fault)):
            raise ValueError(sentence)
        weights = _weights(model)  # alike in every process
        merge_observers(q for q in chosen.values() if q not in weights)
        return _set_ranges(model, chosen, weights)


def _observe(model: nn.Module, batches: Iterable[Any], forward: Callable[[nn.Module, Any], object] | None) -> str:
    """Show all batches to the observers, up to one with NaN or infinity. Returns a sentence about that one, or ""."""
    for index, batch in enumerate(batches):
        for name, part in call_of(model, batch).float_parts if forward is None else float_parts(batch):
            if not bool(is_usable(part)):
                return not_finite_sentence(f"calibration batch {index}", name)
        with counting_first_call(model) as count:
            _run(model, batch, index, forward)
            count()
    return ""


def _run(model: nn.Module, batch: Any, index: int, forward: Callable[[nn.Module, Any], object] | None) -> None:
    if forward is not None:
        forward(model, batch)
        return
    try:
        call_model(model, batch)
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError) as error:
        said = str(error).partition("\n")[0]
        raise UnfitBatchError(
            f"{type(model).__name__} cannot run on calibration batch {index} ({said}): write batches as its forward takes "
            "them, of its dtype and on its device."
        ) from error


def _set_ranges(
    model: nn.Module, chosen: Mapping[str, Quantizer], weights: Mapping[Quantizer, Sequence[Tensor]]
) -> int:
    """Set the ranges, except where every process saw only integers and numbers. Returns how many were set."""
    floats, others = (
        set().union(*gather([name for name, q in chosen.items() if getattr(q, flag)]))
        for flag in ("saw_floats", "saw_others")
    )
    for name in (name for name in chosen if name in others and name not in floats):
        chosen[name].set_passes(True)
    chosen = {name: q for name, q in chosen.items() if not q.passes}
    empty = set()
    for name, quantizer in chosen.items():
        with mode(quantizer, Mode.OBSERVE):
            for weight in weights.get(quantizer, ()):  # one at a time: observers keep copies
                quantizer(weight)
        try:
            if not quantizer.saw_floats and name not in floats:
                raise ValueError(
                    f"{type(quantizer.observer).__name__} has seen no data: calibrate(model, batches) with batches that are "
                    "not empty and run this layer"
                )
            if not quantizer.finish_observing():
                empty.add(quantizer)
        except (RuntimeError, ValueError) as error:
            raise ValueError(f"quantizer {name!r} cannot be calibrated: {error}") from None
    guess_ranges(model, empty)
    if guessed := [name for name, quantizer in chosen.items() if quantizer in empty and not quantizer.is_weight]:
        warnings.warn(
            f"{', '.join(guessed)} saw nothing to represent but zeros, so the first range is a guess: calibrate with other "
            "data, or train on.",
            stacklevel=3,
        )
    return len(chosen)


def _chosen(found: Mapping[str, Quantizer], again: bool | str | Sequence[str]) -> dict[str, Quantizer]:
    """The quantizers with a range that shall get a new one."""
    patterns = ["*"] if again is True else [again] if isinstance(again, str) else again or ()
    if not isinstance(patterns, Collection) or not all(isinstance(pattern, str) for pattern in patterns):
        raise ValueError(
            f"again={again!r} names no quantizers: write True, or globs on their names, again=['sites.*']."
        )
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise ValueError(
                f"again={pattern!r} is the name of no quantizer: write a glob on names such as {next(iter(found))!r}."
            )
    return {
        name: q
        for name, q in found.items()
        if q.ready and not q.is_dynamic and any(fnmatchcase(name, pattern) for pattern in patterns)
    }


@contextmanager
def _observing_anew(repeated: Iterable[Quantizer]) -> Iterator[None]:
    """Inside the `with` these quantizers wait for a range. If the block fails, all get their old ones back."""
    ranges = {quantizer: copy.deepcopy(quantizer.state_dict()) for quantizer in repeated}
    for quantizer in ranges:
        quantizer.forget_range()
    try:
        yield
    except BaseException:
        for quantizer, state in ranges.items():
            quantizer.load_state_dict(state)
        raise


def check_batches(batches: Any) -> None:
    """Raise ValueError for a tensor, whose samples would count as batches, and for a value that is no collection of batches."""
    if isinstance(batches, Tensor):
        raise ValueError(f"batches is one tensor of shape {tuple(batches.shape)}: write a list of batches, [tensor].")
    if isinstance(batches, str | bytes | Path) or not isinstance(batches, Iterable):
        raise ValueError(f"batches={batches!r} is not a list of batches: write [tensor, ...] or a DataLoader.")


def list_of_batches(batches: Any) -> list[Any]:
    """The batches in a list.

    Raises:
        ValueError: as `check_batches`, or there are none.
    """
    check_batches(batches)
    if not (kept := list(batches)):
        raise ValueError("batches is empty: give a batch or two.")
    return kept


def _weight_quantizers_off(model: nn.Module) -> Any:
    """Turn weight quantizers off inside the `with`: a weight is observed once, not once per batch."""
    return mode(nn.ModuleList(_weights(model)), Mode.OFF)


def _weights(model: nn.Module) -> dict[Quantizer, list[Tensor]]:
    """The weights of each weight quantizer."""
    found: dict[Quantizer, list[Tensor]] = {}
    for module in model.modules():
        for _, weight, quantizer in quantized_weights(module):
            found.setdefault(quantizer, []).append(weight)
    return found
