"""`qat.load_quantized`: a quantized network from a folder that `qat.save_quantized` wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from qat.arguments import as_path, classes_in
from qat.capture import copy_model
from qat.export.packed.folder import damaged, read_folder
from qat.export.packed.integer import build_integer
from qat.export.packed.prepared import build_prepared, build_weight_only
from qat.export.packed.tensors import TensorReader
from qat.messages import type_of
from qat.structure import Names
from qat.structure.names import path_of
from qat.transform import is_prepared


def load_quantized(
    folder: str | Path, model: nn.Module | Callable[[], nn.Module] | None = None, allow: Iterable[type] = ()
) -> nn.Module:
    """The network that `qat.save_quantized` wrote, bit for bit, on the CPU and in evaluation mode.

    Nothing in the folder is executed, and no module that it names is imported, but those of torch.nn, torchvision's models,
    qat, and the outputs of transformers. Its weights and its manifest are compared with their hashes.

    Args:
        folder: what `save_quantized` wrote.
        model: the float network, which is not changed, or a function or class that makes it. Needed for prepared networks of
            other classes than those; its values do not count.
        allow: your own quantizers and observers that the policy names, modules inside an integer model, and the dataclass or
            named tuple that it returns.

    Returns:
        A prepared network, or an integer model, as it was saved.

    Raises:
        FileNotFoundError: there is no such folder, or it holds no quantized network.
        ValueError: the folder is damaged, names what it may not name, or does not fit `model`.
    """
    folder, allow = as_path(folder, "folder"), classes_in(allow)
    manifest, stored = read_folder(folder)
    with damaged(folder):
        tensors = TensorReader(stored, manifest["tensors"])
        kind, names = manifest["kind"], Names(allow)
        if kind not in ("prepared", "weight_only", "integer"):
            raise ValueError(f"its kind {kind!r} is unknown")
        if kind == "integer":
            return build_integer(manifest, tensors, names)
        _check_policy(folder, manifest["policy"], allow)
    network = _network(folder, manifest, model)
    with (
        damaged(folder)
        if network is None
        else damaged(folder, "does not fit", "pass the float network that was prepared")
    ):
        if kind == "weight_only" and network is not None:
            return build_weight_only(manifest, tensors, network)
        return build_prepared(manifest, tensors, network, names)


def _network(
    folder: Path, manifest: Mapping[str, Any], model: nn.Module | Callable[[], nn.Module] | None
) -> nn.Module | None:
    """A network of the caller's that may be changed; None: the manifest says how it is built."""
    if model is None:
        if manifest["architecture"] is None:
            raise ValueError(
                f"{folder} holds a {manifest['class']}, whose class is not taken from a file: pass the float network, "
                f"qat.load_quantized(folder, model={manifest['class']}(...))."
            )
        return None
    if not callable(model):
        raise ValueError(f"model={model!r:.60} is not a network: pass the float network, or a function that makes one.")
    network = copy_model(model) if isinstance(model, nn.Module) else model()
    if not isinstance(network, nn.Module):
        raise ValueError(f"{folder}: model makes {type_of(network)}: pass a network, or a function that makes one.")
    if is_prepared(network):
        raise ValueError(f"{folder}: the model is prepared already: pass the float network.")
    return network


def _check_policy(folder: Path, policy: Mapping[str, Any], allow: Iterable[type]) -> None:
    """Refuse classes in a policy that are neither qat's nor the caller's, before anything is imported."""
    allowed = {path_of(cls) for cls in allow}
    for rule in policy["rules"].values():
        for tensor in filter(None, (rule["weight"], rule["activation"])):
            for part in (tensor["quantizer"], tensor["observer"]):
                for name in _targets(part):
                    if "." in name and name not in allowed:
                        raise ValueError(
                            f"{folder} was trained with {name}, which is not a class of qat: import it, and pass it, "
                            f"allow=[{name.rpartition('.')[2]}]."
                        )


def _targets(part: Any) -> Iterator[str]:
    """The class that a part of a policy names, and the one that its option `estimator` names."""
    if isinstance(part, Mapping):
        yield str(part.get("_target_", ""))
        if "estimator" in part:
            yield from _targets(part["estimator"])
    else:
        yield str(part)
