"""A policy as plain data, in checkpoints, and what differs between two of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from qat.transform import Policy, prepare_
from qat.transform.example import zeros_like_example
from qat.transform.record import capture_of, record_of

CHECKPOINT_KEY = "qat"
"""The key under which a checkpoint keeps the policy, the name of the network inside the LightningModule, and how its graph was
captured (`PreparedRecord.capture`)."""

BUILT_FROM_KEY = "built_from"
"""The key under which a checkpoint keeps what its network is built from: a `_target_` and its options."""


def plain_data(policy: Any) -> Any:
    """A policy as dicts, lists, strings and numbers only, which any checkpoint reader accepts."""
    if isinstance(policy, Policy):
        return plain_data(policy.to_dict())
    if isinstance(policy, Mapping):
        return {str(key): plain_data(value) for key, value in policy.items()}
    return [plain_data(value) for value in policy] if isinstance(policy, list | tuple) else policy


def describe_prepared(network: nn.Module, policy: Policy, name: str | None, bits: int | None) -> dict[str, Any]:
    """What a checkpoint keeps under `CHECKPOINT_KEY`: plain data.

    Args:
        network: the prepared network.
        policy: the policy that it was prepared with.
        name: the name of the network inside the LightningModule.
        bits: the bits in force, if they are not the policy's.
    """
    return {"policy": plain_data(policy), "network": name, "bits": bits, "capture": capture_of(network)}


def prepare_as_recorded(network: nn.Module, policy: Policy, capture: Mapping[str, Any] | None) -> None:
    """Prepare a float network as another one was prepared, in place. A prepared network is left as it is.

    Args:
        network: the float network.
        policy: that of the other one.
        capture: the other one's `PreparedRecord.capture`; None: it was prepared without example inputs.

    Raises:
        ValueError: the network cannot be captured in that way, so the quantizers would be others.
    """
    capture = capture or {}
    parameter = next(network.parameters(), None)
    device = None if parameter is None else parameter.device
    description = capture.get("example")
    prepare_(network, policy, None if description is None else zeros_like_example(description, device))
    record, wanted = record_of(network), capture.get("way")
    if wanted and record is not None and record.way != wanted:
        raise ValueError(
            f"{type(network).__name__} was captured with {wanted} and is captured {_with(record.way)} here"
            f"{'' if description else ' (its example inputs were not plain data, and are not recorded)'}: pass it "
            "prepared, qat.prepare(network, policy, example_inputs), with the version of torch that it was made with."
        )


def _with(way: str) -> str:
    return way if way == "layer by layer" else f"with {way}"


def check_not_weights_alone(content: Any, what: str) -> None:
    """Check that a checkpoint without a record is not one of a prepared network.

    content: of the checkpoint. what: it, the beginning of a sentence.

    Raises:
        ValueError: it has the scales of quantizers: Lightning leaves out what callbacks keep if weights alone are saved.
    """
    state = content.get("state_dict") if isinstance(content, Mapping) else None
    if isinstance(state, Mapping) and any("quantizer." in str(name) for name in state):
        raise ValueError(
            f"{what} holds weights and scales, and not the policy that they belong to: write "
            "ModelCheckpoint(save_weights_only=False), which keeps it."
        )


def check_same_policy(found: Any, mine: Policy, what: str) -> None:
    """Check that two policies quantize alike. Their names do not matter.

    Args:
        found: the other policy, or its plain data.
        mine: the policy of this run.
        what: the start of the error message.

    Raises:
        ValueError: they do not; the message names the first difference.
    """
    recorded, wanted = plain_data(found), plain_data(mine)
    difference = _difference(_nameless(recorded), _nameless(wanted))
    if difference:
        raise ValueError(
            f"{what} with policy {recorded.get('name')!r}, this run asks for {wanted['name']!r} ({difference}): "
            "use the same policy, or start from the float network."
        )


def _nameless(policy: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in policy.items() if key != "name"}


def _difference(found: Any, mine: Any, where: str = "") -> str:
    """The first difference, depth first; "" if there is none.

    >>> _difference({"rules": {"all": {"bits": 4}}}, {"rules": {"all": {"bits": 2}}})
    'rules.all.bits is 4 there, 2 here'
    """
    if found == mine:
        return ""
    if isinstance(found, Mapping) and isinstance(mine, Mapping):
        for key in dict.fromkeys([*found, *mine]):
            inside = f"{where}.{key}" if where else str(key)
            if difference := _difference(found.get(key), mine.get(key), inside):
                return difference
    there, here = ("nothing" if x is None else "something" if isinstance(x, Mapping) else x for x in (found, mine))
    return f"{where} is {there} there, {here} here"
