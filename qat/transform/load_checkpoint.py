"""`qat.load_checkpoint`: a prepared network from a checkpoint, in another process, from the file alone."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qat.arguments import as_path, classes_in
from qat.capture import copy_model
from qat.reading.checkpoint import check_kinds
from qat.reading.malformed import malformed
from qat.sparsity.channels import shrink
from qat.transform import set_bits
from qat.transform.checkpoint_record import CheckpointRecord
from qat.transform.class_names import only_known_classes
from qat.transform.policy_record import prepare_as_recorded


def load_checkpoint(
    path: str | Path,
    model: type[nn.Module] | nn.Module | None = None,
    *,
    allow: Sequence[type | Callable[..., nn.Module]] = (),
    **hyperparameters: Any,
) -> nn.Module:
    """The network that `QuantizationAwareTraining` trained, with its quantizers, weights and scales, in evaluation mode.

    The policy is in the checkpoint, so this needs no configuration: the result is ready for `qat.convert` and
    `qat.export_onnx`. Nothing that a file contains or names is executed, imported or downloaded; its checksums are compared
    before it is used (docs/security.md).

        network = qat.load_checkpoint("best.ckpt")                   # written by train.py
        module = qat.load_checkpoint("best.ckpt", MyLightningModule)  # with the hyperparameters that it saved
        network = qat.load_checkpoint("best.ckpt", MyNetwork())       # a prepared copy
        network = qat.load_checkpoint("best.ckpt", MyNetwork(), allow=[MyQuantizer])

    Args:
        path: a checkpoint that Lightning wrote.
        model: a class, which is built as `load_from_checkpoint` builds it; or an object, which is not changed: a
            LightningModule, or the network inside one. None: the class that the checkpoint names.
        allow: your own quantizers, observers, estimators and networks that the checkpoint may name, beside those of `qat`.
        hyperparameters: arguments of the class, if the checkpoint has none or others are wanted.

    Returns:
        A prepared object of the type of `model`, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds no prepared network, does not fit `model`, holds objects that could run code, or
            names a class that is not allowed.
    """
    path, allow = as_path(path), classes_in(allow)
    record = CheckpointRecord.read(path, allow)
    built = _build(path, record, model, hyperparameters, allow)
    name, state = record.network, record.content["state_dict"]
    if not _is_lightning_module(type(built)):
        name, state = "", record.state
    if name not in dict(built.named_modules()):
        raise ValueError(
            f"checkpoint {path} was trained with its network in {name!r}, where {type(built).__name__} has nothing: pass the "
            "class that was trained."
        )
    with malformed(path, "does not fit its network", "pass the network that was trained"), only_known_classes(allow):
        if record.channels:
            shrink(built.get_submodule(name), record.channels)
        prepare_as_recorded(built.get_submodule(name), record.policy, record.capture)
    if record.bits is not None:
        warnings.warn(
            f"checkpoint {path} was written at {record.bits} bits, on the way to fewer, and so is the network: load a later "
            "one.",
            stacklevel=2,
        )
        set_bits(built.get_submodule(name), record.bits)
    _load_state(path, built, state)
    return built.eval()


def _load_state(path: Path, built: nn.Module, state: Mapping[str, Any]) -> None:
    """Load the state of the checkpoint, or raise ValueError if it belongs to another module."""
    check_kinds(path, state, built.state_dict())
    try:
        built.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError, ValueError, KeyError) as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(
            f"checkpoint {path} is not one of {type(built).__name__} ({reason}): pass the class, or the network, that was "
            "trained."
        ) from error


def _build(
    path: Path,
    record: CheckpointRecord,
    model: type[nn.Module] | nn.Module | None,
    options: Mapping[str, Any],
    allow: Sequence[Any],
) -> nn.Module:
    """The float network, or the module around it, as its class or the checkpoint describes it."""
    if isinstance(model, nn.Module):
        if options:
            raise ValueError(
                f"{', '.join(options)} cannot be set: {type(model).__name__} is already built; pass its class."
            )
        return copy_model(model).cpu()
    if model is None:
        return record.build(path, options, allow)
    try:
        if _is_lightning_module(model):
            return _from_hyperparameters(path, record, model, options)
        return model(**options)
    except TypeError as error:
        kind = getattr(model, "__name__", "the network")
        raise ValueError(
            f"{kind} cannot be built ({error}): pass what the checkpoint does not remember, qat.load_checkpoint(path, {kind}, "
            "name=value), or call self.save_hyperparameters() in its __init__ before the training."
        ) from error


def _from_hyperparameters(path: Path, record: CheckpointRecord, model: Any, options: Mapping[str, Any]) -> nn.Module:
    """Build the module as `load_from_checkpoint` does, from the checked content instead of the file."""
    checked = io.BytesIO()
    torch.save(record.content, checked)
    checked.seek(0)
    with warnings.catch_warnings():
        # Lightning warns about the keys of the quantizers, which are loaded later.
        warnings.filterwarnings("ignore", message="Found keys that are")
        try:
            built: nn.Module = model.load_from_checkpoint(
                checked, map_location="cpu", strict=False, weights_only=True, **options
            )
        except (KeyError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"checkpoint {path} cannot be loaded into {model.__name__} ({textwrap.shorten(str(error), 200)}): pass the "
                "class that was trained."
            ) from error
    return built


def _is_lightning_module(cls: Any) -> bool:
    """Whether `cls` is a LightningModule, by its name: a plain network loads without Lightning."""
    return any(base.__name__ == "LightningModule" for base in getattr(cls, "__mro__", ()))
