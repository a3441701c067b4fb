"""What a checkpoint says about its network, checked as untrusted data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qat.models
from qat.reading.bounds import check_nesting
from qat.reading.checkpoint import read_checkpoint
from qat.reading.malformed import malformed
from qat.transform.class_names import import_path, only_known_classes
from qat.transform.policy import Policy
from qat.transform.policy_record import BUILT_FROM_KEY, CHECKPOINT_KEY, check_not_weights_alone
from qat.transform.presets import load_policy

NETWORKS = (qat.models.LeNet5, qat.models.ResNetCifar, qat.models.torchvision_model)
"""What a file may name as its network."""
MAX_PLAIN_VALUES = 100_000
LARGEST_OPTION = 1 << 16
"""The largest number among the options of quantizers and observers: some options decide how much is allocated."""

MOST_TAKEN_OUT = 64
"""How many times smaller a network can be without some of its channels."""


@dataclass(frozen=True)
class CheckpointRecord:
    """A checkpoint of a prepared network.

    Attributes:
        content: the whole file, without the entries that Lightning would import and call.
        policy: the policy that the network was prepared with.
        network: its name in the LightningModule, "" for the module itself.
        bits: the bits in force, if they are not the policy's.
        capture: how its graph was captured.
        channels: layer -> output channels, where some were taken out before it was prepared.
    """

    content: dict[str, Any]
    policy: Policy
    network: str
    bits: int | None
    capture: Mapping[str, Any] | None
    channels: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path, allow: Iterable[Any] = ()) -> CheckpointRecord:
        """Read a file. Its policy may name classes of this project and those of `allow`.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is damaged, or no checkpoint of a prepared network.
        """
        if not path.is_file():
            raise FileNotFoundError(f"checkpoint {path} does not exist: give a .ckpt file that a fit wrote.")
        content = read_checkpoint(path)
        if not isinstance(content, dict) or CHECKPOINT_KEY not in content or "state_dict" not in content:
            check_not_weights_alone(content, f"checkpoint {path}")
            raise ValueError(
                f"checkpoint {path} holds no policy, so no quantizers: load it into the float network, "
                "model.load_state_dict(torch.load(path)['state_dict']), and give that to qat.prepare."
            )
        with malformed(path, "has a record of its quantizers that cannot be read", "use a checkpoint that a fit wrote"):
            record = content[CHECKPOINT_KEY]
            check_nesting(record, MAX_PLAIN_VALUES)
            _check_types(record, content["state_dict"])
            _check_numbers(record["policy"])
            with only_known_classes(allow):
                policy = load_policy(record["policy"])
        for key in ("_instantiator", "_class_path"):  # Lightning would import and call them
            if isinstance(options := content.get("hyper_parameters"), dict):
                options.pop(key, None)
        return cls(
            content, policy, record["network"], record.get("bits"), record.get("capture"), record.get("channels") or {}
        )

    @property
    def state(self) -> dict[str, Tensor]:
        """The weights of the network alone."""
        prefix = f"{self.network}." if self.network else ""
        items = self.content["state_dict"].items()
        return {key.removeprefix(prefix): value for key, value in items if key.startswith(prefix)}

    def build(self, path: Path, options: Mapping[str, Any], allow: Iterable[Any]) -> nn.Module:
        """The float network, from the description in the file. Nothing is imported or downloaded for it.

        Args:
            path: the file, for messages.
            options: arguments of the network that the caller gives, beside those in the file.
            allow: classes and functions of the caller that the file may name.

        Raises:
            ValueError: the file does not describe it, or describes something else than its weights.
        """
        description = self.content.get(BUILT_FROM_KEY)
        if description is None:
            raise ValueError(
                f"checkpoint {path} does not say what its network is built from: pass it, qat.load_checkpoint(path, "
                "MyLightningModule) or qat.load_checkpoint(path, network)."
            )
        with malformed(path, "does not say what its network is built from", "pass the network"):
            check_nesting(description, MAX_PLAIN_VALUES)
            stored = {str(key): value for key, value in description.items() if key != "weights"}
            target = str(stored.pop("_target_"))
            make = _known(target, allow)
            if make is None:
                raise ValueError(
                    f"checkpoint {path} says that its network is built from {target}, which is not a network of qat: if you "
                    f"trust it, import it and pass the class itself, allow=[{target.rpartition('.')[2] or 'MyNetwork'}], or "
                    "pass the network."
                )
            if make in NETWORKS:
                self._check_size(make, stored)
            built: nn.Module = make(**{**stored, **options})
        return built

    def _check_size(self, make: Callable[..., nn.Module], options: Mapping[str, Any]) -> None:
        """Check, before anything is allocated, that the network is no larger than the stored weights allow."""
        if options.get("depth", 0) > 3 * len(self.state):
            raise ValueError(f"depth={options['depth']} with {len(self.state)} tensors")
        with torch.device("meta"):
            declared = sum(p.numel() for p in make(**options).parameters())
        stored = sum(x.numel() for x in self.state.values())
        if declared > stored * (MOST_TAKEN_OUT if self.channels else 1):
            raise ValueError(f"a network of {declared:,} parameters with {stored:,} values")


def _known(target: str, allow: Iterable[Any]) -> Callable[..., nn.Module] | None:
    """The network that `target` names."""
    own = {f"qat.models.{make.__name__}": make for make in NETWORKS} | {import_path(make): make for make in NETWORKS}
    return (own | {import_path(x): x for x in allow}).get(target)


def _check_types(record: Any, state: Any) -> None:
    if not isinstance(record, Mapping) or not isinstance(record.get("policy"), Mapping):
        raise ValueError("it has no policy")
    if not isinstance(record.get("network"), str):
        raise ValueError("it does not name its network")
    bits = record.get("bits")
    if bits is not None and (not isinstance(bits, int) or isinstance(bits, bool) or not 1 <= bits <= 8):
        raise ValueError(f"bits={bits!r}")
    capture = record.get("capture")
    if capture is not None and not isinstance(capture, Mapping):
        raise ValueError(f"capture={capture!r}")
    channels = record.get("channels") or {}
    if not isinstance(channels, Mapping) or not all(type(n) is int and n > 0 for n in channels.values()):
        raise ValueError(f"channels={channels!r}")
    if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
        raise ValueError("its weights have no names")


def _check_numbers(policy: Mapping[str, Any]) -> None:
    for value in check_nesting(policy):
        if isinstance(value, int) and abs(value) > LARGEST_OPTION:
            raise ValueError(f"{value} is larger than any option of a policy")
        if not isinstance(value, str | int | float | bool | None):
            raise ValueError(f"a {type(value).__name__} is not an option of a policy")
