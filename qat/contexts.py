"""Context managers that change a setting inside their `with` block and restore it, also after an exception."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


@contextmanager
def training_mode(model: nn.Module, training: bool) -> Iterator[None]:
    """Inside the `with` block, `model` and all its submodules are in training mode, or in evaluation mode.

    Afterwards each submodule returns to the mode that it had before.

    >>> with training_mode(layer := nn.Dropout(), False):
    ...     layer.training
    False
    >>> layer.training
    True
    """
    before = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


@contextmanager
def quiet(
    loggers: Sequence[str] = (), warnings_from: Sequence[str] | None = None, drop_output: bool = True
) -> Iterator[None]:
    """Inside the `with` block, libraries report errors only.

    Args:
        loggers: names of loggers that only report errors; `root` is every logger without a level of its own.
        warnings_from: names of the modules whose warnings are ignored; None ignores all warnings.
        drop_output: also drop what the block prints to standard output.
    """
    levels = {name: logging.getLogger(name).level for name in loggers}
    for name in loggers:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            if warnings_from is None:
                warnings.simplefilter("ignore")
            for name in warnings_from or ():
                warnings.filterwarnings("ignore", module=name)
            with redirect_stdout(StringIO()) if drop_output else nullcontext():
                yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def no_output() -> Iterator[None]:
    """Inside the `with` block, standard output is dropped, also that of code which is not written in Python."""
    sys.stdout.flush()
    try:
        saved = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    try:
        with Path(os.devnull).open("w") as nothing:
            os.dup2(nothing.fileno(), 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


@contextmanager
def same_attention() -> Iterator[None]:
    """Inside the `with` block, attention of torch.nn computes in evaluation what it computes in training, to the last bit.

    Its fused kernel, which sums in another order, is off. A query that may look at no key, as in left padding, gets the mean of
    all values, as in a captured graph.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with _MeanWithoutKeys():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


class _MeanWithoutKeys(TorchFunctionMode):
    """Attention gives queries without a key the mean of all values, where torch's function gives 0."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is _ATTENTION:
            return _mean_without_keys(*args, **kwargs)
        if func is not F.multi_head_attention_forward:
            return func(*args, **kwargs)
        F.scaled_dot_product_attention = _mean_without_keys  # a mode does not see what `func` calls inside
        try:
            return func(*args, **kwargs)
        finally:
            F.scaled_dot_product_attention = _ATTENTION


_ATTENTION = F.scaled_dot_product_attention


def _mean_without_keys(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    result = _ATTENTION(query, key, value, *args, **kwargs)
    mask = args[0] if args else kwargs.get("attn_mask")
    if mask is None or kwargs.get("enable_gqa"):
        return result  # with fewer heads of keys than of queries, a captured graph keeps torch's function
    allowed = mask if mask.dtype is torch.bool else mask != -torch.inf
    return torch.where(allowed.any(-1, keepdim=True), result, value.mean(-2, keepdim=True))
