"""`qat.load_checkpoint`: a prepared network from a checkpoint, in another process, from the file alone."""

from __future__ import annotations

import pickle
import sys
import textwrap
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

import qat.models
from qat.capture import copy_model
from qat.transform import Policy, load_policy, set_bits
from qat.transform.policy_record import BUILT_FROM_KEY, CHECKPOINT_KEY, prepare_as_recorded


def load_checkpoint(
    path: str | Path, model: type[nn.Module] | nn.Module | None = None, **hyperparameters: Any
) -> nn.Module:
    """The network that `QuantizationAwareTraining` trained, with its quantizers, weights and scales, in evaluation mode.

    The policy is in the checkpoint, so this needs no configuration: the result is ready for `qat.convert` and
    `qat.export_onnx`. Code that a file could contain is never executed.

        network = qat.load_checkpoint("best.ckpt")                   # written by train.py
        module = qat.load_checkpoint("best.ckpt", MyLightningModule)  # with the hyperparameters that it saved
        network = qat.load_checkpoint("best.ckpt", MyNetwork())       # a prepared copy

    Args:
        path: a checkpoint that Lightning wrote.
        model: a class, which is built as `load_from_checkpoint` builds it; or an object, which is not changed: a
            LightningModule, or the network inside one. None: the class that the checkpoint names.
        hyperparameters: arguments of the class, if the checkpoint has none or others are wanted.

    Returns:
        A prepared object of the type of `model`, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file holds no prepared network, not one that fits `model`, or objects that could run code.
    """
    path = Path(path).expanduser()
    checkpoint = _read(path)
    built = _build(path, checkpoint, model, hyperparameters)
    name = checkpoint[CHECKPOINT_KEY]["network"]
    if not _is_lightning_module(type(built)):
        prefix, name = f"{name}." if name else "", ""
        state = {k.removeprefix(prefix): v for k, v in checkpoint["state_dict"].items() if k.startswith(prefix)}
    else:
        state = checkpoint["state_dict"]
    if name not in dict(built.named_modules()):
        raise ValueError(
            f"checkpoint {path} was trained with its network in {name!r}, where {type(built).__name__} has nothing: pass the "
            "class that was trained."
        )
    prepare_as_recorded(
        built.get_submodule(name), _policy_of(path, checkpoint), checkpoint[CHECKPOINT_KEY].get("capture")
    )
    if (bits := checkpoint[CHECKPOINT_KEY].get("bits")) is not None:
        warnings.warn(
            f"checkpoint {path} was written at {bits} bits, on the way to fewer, and so is the network: load a later one.",
            stacklevel=2,
        )
        set_bits(built.get_submodule(name), bits)
    try:
        built.load_state_dict(state)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), 300)
        raise ValueError(
            f"checkpoint {path} is not one of {type(built).__name__} ({reason}): pass the class, or the network, that was "
            "trained."
        ) from error
    return built.eval()


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist: give a .ckpt file that a fit wrote.")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = textwrap.shorten(str(error).rpartition("WeightsUnpickler error:")[2], 200)
        raise ValueError(
            f"checkpoint {path} holds pickled objects, which could run code and are never loaded ({reason}): keep them out of "
            "it, self.save_hyperparameters(ignore=[...])."
        ) from error
    except (RuntimeError, EOFError, ValueError) as error:
        raise ValueError(
            f"{path} is not a checkpoint ({textwrap.shorten(str(error), 160)}): give a .ckpt file."
        ) from error
    if not isinstance(checkpoint, dict) or CHECKPOINT_KEY not in checkpoint or "state_dict" not in checkpoint:
        raise ValueError(
            f"checkpoint {path} holds no policy, so no quantizers: load it into the float network, "
            "model.load_state_dict(torch.load(path)['state_dict']), and give that to qat.prepare."
        )
    return checkpoint


def _build(
    path: Path, checkpoint: Mapping[str, Any], model: type[nn.Module] | nn.Module | None, options: Mapping[str, Any]
) -> nn.Module:
    """The float network, or the module around it, as its class or the checkpoint describes it."""
    if isinstance(model, nn.Module):
        if options:
            raise ValueError(
                f"{', '.join(options)} cannot be set: {type(model).__name__} is already built; pass its class."
            )
        return copy_model(model).cpu()
    if model is None:
        model, options = _built_from(path, checkpoint, options)
    try:
        if _is_lightning_module(model):
            return _from_hyperparameters(path, model, options)
        return model(**options)
    except TypeError as error:
        kind = getattr(model, "__name__", "the network")
        raise ValueError(
            f"{kind} cannot be built ({error}): pass what the checkpoint does not remember, qat.load_checkpoint(path, {kind}, "
            "name=value), or call self.save_hyperparameters() in its __init__ before the training."
        ) from error


def _from_hyperparameters(path: Path, model: Any, options: Mapping[str, Any]) -> nn.Module:
    with warnings.catch_warnings():
        # Lightning warns about the keys of the quantizers, which are loaded later.
        warnings.filterwarnings("ignore", message="Found keys that are")
        built: nn.Module = model.load_from_checkpoint(
            path, map_location="cpu", strict=False, weights_only=True, **options
        )
    return built


def _built_from(path: Path, checkpoint: Mapping[str, Any], options: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The class or function that the checkpoint names for its network, and its options. Nothing is imported for it."""
    description = checkpoint.get(BUILT_FROM_KEY)
    if description is None:
        raise ValueError(
            f"checkpoint {path} does not say what its network is built from: pass it, qat.load_checkpoint(path, "
            "MyLightningModule) or qat.load_checkpoint(path, network)."
        )
    arguments = {**description, **options}
    target = str(arguments.pop("_target_"))
    module, _, attribute = target.rpartition(".")
    known = getattr(sys.modules.get(module), attribute, None)
    if known is qat.models.torchvision_model or (isinstance(known, type) and issubclass(known, nn.Module)):
        return known, arguments
    raise ValueError(
        f"checkpoint {path} says that its network is built from {target}, which is not a network that is imported here: import "
        f"{module or target} first, if you trust it, or pass the network."
    )


def _policy_of(path: Path, checkpoint: Mapping[str, Any]) -> Policy:
    """The policy of the checkpoint. Its classes must be the project's own, or imported already."""
    content = checkpoint[CHECKPOINT_KEY]["policy"]
    for part in _parts(content):
        module = part.rpartition(".")[0]
        if module and module not in sys.modules:
            raise ValueError(f"checkpoint {path} was trained with {part}: import {module} first, if you trust it.")
    return load_policy(content)


def _parts(policy: Mapping[str, Any]) -> Iterator[str]:
    """The names of the classes in a policy's plain data."""
    for rule in policy["rules"].values():
        for tensor in filter(None, (rule["weight"], rule["activation"])):
            for part in (tensor["quantizer"], tensor["observer"]):
                yield from _targets(part)


def _targets(part: str | Mapping[str, Any]) -> Iterator[str]:
    """The class that a part names, and the one that its option `estimator` names."""
    yield part if isinstance(part, str) else str(part.get("_target_", ""))
    if not isinstance(part, str) and "estimator" in part:
        yield from _targets(part["estimator"])


def _is_lightning_module(cls: Any) -> bool:
    """Whether `cls` is a LightningModule, by its name: a plain network loads without Lightning."""
    return any(base.__name__ == "LightningModule" for base in getattr(cls, "__mro__", ()))
