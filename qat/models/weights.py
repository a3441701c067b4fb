"""Float weights in files: checked strictly by name and shape, and loaded without running code from the file."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from torch import Tensor, nn

from qat.arguments import as_path, check_kind, check_network
from qat.reading.checkpoint import check_kinds, read_checkpoint
from qat.reading.malformed import malformed
from qat.reading.tensor_file import read_tensors, write_tensors

WRAPPER_PREFIXES = ("model.", "network.", "module.", "net.", "_orig_mod.")
TORCH_SUFFIXES = (".ckpt", ".pt", ".pth")
SUFFIXES = (".safetensors", *TORCH_SUFFIXES)
STATE_KEYS = ("state_dict", "model_state_dict", "model")  # keys under which training scripts store the weights


def load_weights(model: nn.Module, path: str | Path, needs_checksum: bool = False) -> None:
    """Copy all weights of a file into `model`, in place: parameters keep their identity, dtype and device.

    Names and shapes must be exactly those of the model. A prefix that wrappers add ("model.", "module.", ...) is removed
    if the names then fit; tensors without this prefix (a metric, a teacher) do not belong to the network and are
    ignored. Counters `num_batches_tracked` may be missing, as they are in older files.

    Args:
        path: .safetensors, or .ckpt, .pt, .pth of Lightning or torch. Nothing in it is executed; checksums that it has are
            compared, and what it declares is no larger than the file.
        needs_checksum: refuse a .safetensors file without a checksum, because `save_weights` wrote it.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file cannot be read safely, or its names or shapes differ from those of the model.
    """
    check_network(model)
    path = as_path(path)
    expected = model.state_dict()
    loaded = _without_prefix(_read(path, needs_checksum), expected)

    misshaped = [name for name in loaded if name in expected and loaded[name].shape != expected[name].shape]
    missing = [name for name in expected if name not in loaded and not name.endswith("num_batches_tracked")]
    unexpected = sorted(name for name in loaded if name not in expected)
    if missing or unexpected:
        raise ValueError(
            f"checkpoint {path} is not one of {type(model).__name__}: {_count_names(missing, 'missing')}, "
            f"{_count_names(unexpected, 'unexpected')}; choose the model it was saved from, or another checkpoint."
        )
    check_kinds(path, loaded, expected)
    if misshaped:
        raise ValueError(_misshaped_message(path, misshaped, loaded, expected))
    with malformed(path, f"is not one of {type(model).__name__}", "choose the model it was saved from"):
        model.load_state_dict(dict(loaded), strict=False)


def save_weights(model: nn.Module, path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write the state_dict of the model as .safetensors, with a checksum; a reader never sees a partial file.

    Args:
        metadata: remarks about the weights, as {"accuracy": "0.8792"}.

    Raises:
        ValueError: `path` does not end in .safetensors.
        OSError: the file cannot be written; the old one, if any, is intact.
    """
    check_network(model)
    path = as_path(path)
    check_kind("metadata", metadata, (Mapping, NoneType), "texts by name, as {'accuracy': '0.8792'}")
    if path.suffix != ".safetensors":
        raise ValueError(f"checkpoint {path} ends in {path.suffix!r}: write a name that ends in .safetensors.")
    # clone, because safetensors refuses tensors that share memory (tied weights)
    state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
    write_tensors(path, state, metadata)


def _read(path: Path, needs_checksum: bool) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist: write the path of a {', '.join(SUFFIXES)} file.")
    if path.suffix == ".safetensors":
        return read_tensors(path, needs_checksum)
    if path.suffix not in TORCH_SUFFIXES:
        raise ValueError(f"checkpoint {path} ends in {path.suffix!r}: write a {', '.join(SUFFIXES)} file.")
    loaded = read_checkpoint(path)
    return _state_dict(loaded, path)


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The weights in the result of torch.load: a state_dict, or a dict that holds one under a usual key."""
    for candidate in (loaded, *(loaded.get(key) for key in STATE_KEYS if isinstance(loaded, dict))):
        if not isinstance(candidate, dict) or not candidate:
            continue
        if all(isinstance(name, str) and isinstance(value, Tensor) for name, value in candidate.items()):
            return candidate
    raise ValueError(
        f"checkpoint {path} has no state_dict in it: save model.state_dict(), alone or under the key 'state_dict'."
    )


def _without_prefix(state: dict[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """`state` without wrapper prefixes: as many are removed as make the most names fit."""
    names = set(expected)
    best, candidates = state, [state]
    for _ in range(3):  # LightningModule around DistributedDataParallel around torch.compile
        candidates = [
            {name.removeprefix(prefix): value for name, value in candidate.items() if name.startswith(prefix)}
            for candidate in candidates
            for prefix in WRAPPER_PREFIXES
        ]
        # max returns the first of equals, which has the fewest prefixes removed
        best = max([best, *candidates], key=lambda candidate: len(names & candidate.keys()))
    return best


def _misshaped_message(path: Path, misshaped: list[str], loaded: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    name = max(misshaped, key=lambda name: loaded[name].ndim)  # prefers the weight of a head to its bias
    have, want = tuple(loaded[name].shape), tuple(expected[name].shape)
    head = list(expected)[-1].rpartition(".")[0]
    only_the_head = all(name.rpartition(".")[0] == head for name in misshaped)
    if only_the_head and len(have) == len(want) and have[1:] == want[1:]:
        return (
            f"checkpoint {path} has {have[0]} classes in {name!r} {have}, the data have {want[0]}: "
            "choose the data it was trained on, or another checkpoint."
        )
    return (
        f"checkpoint {path} has {name!r} of shape {have}, the model of shape {want} (and {len(misshaped) - 1} more differ): "
        "choose the model it was saved from, or another checkpoint."
    )


def _count_names(names: list[str], what: str) -> str:
    """'2 names missing ('fc.weight', 'fc.bias')'."""
    shown = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} names {what}" + (f" ({shown})" if names else "")
