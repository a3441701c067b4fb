"""A prepared network, or the plain one that `convert` makes of a network without a graph, to a manifest and back.

The manifest says how the float network is built, and with which policy it was prepared. Preparing it again gives every
quantizer its place; the file gives every tensor its value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qat.contexts import training_mode
from qat.export.packed.filling import aliases_of, fill, placeholder
from qat.export.packed.masters import Master, Masters, describe_masters, find_masters
from qat.export.packed.tensors import TensorReader, TensorWriter
from qat.integer.convert import with_weight_only_layers
from qat.integer.weight_only import StoredWeight, WeightOnlyLayer
from qat.nn import quantized_weights
from qat.quantizers import Mode, Quantizer
from qat.spec import QParams
from qat.structure import ModuleBuilder, Names
from qat.structure.modules import tensor_names
from qat.transform import bits_in_force, load_policy, quantizers, set_bits
from qat.transform.policy_record import plain_data, prepare_as_recorded
from qat.transform.record import PreparedRecord

Manifest = dict[str, Any]


def describe_prepared(model: nn.Module, record: PreparedRecord, writer: TensorWriter) -> tuple[Manifest, Masters]:
    """What the manifest says of a prepared network whose tensors `writer` takes, and which weights stay float."""
    masters = find_masters(model)
    names = {quantizer: name for name, quantizer in quantizers(model).items()}
    for name, master in masters.found.items():
        for i, (quantizer, codes) in enumerate(zip(master.quantizers, master.codes, strict=True)):
            writer.add_codes(_codes_name(name, i), codes, quantizer.spec.grid.bits)
        if master.shift is not None:
            writer.add(f"{name}#shift", master.shift)
    manifest = _common(model, record, writer, skip=set(masters.found))
    dtypes = {name: str(model.get_parameter(name).dtype).removeprefix("torch.") for name in masters.found}
    packed = describe_masters(masters.found, names)
    manifest["packed"] = {name: entry | {"dtype": dtypes[name]} for name, entry in packed.items()}
    return manifest, masters


def describe_weight_only(model: nn.Module, record: PreparedRecord, writer: TensorWriter) -> Manifest:
    """What the manifest says of a network without a graph whose weights `convert` has made codes."""
    skip = set()
    for name, module in model.named_modules():
        if isinstance(module, WeightOnlyLayer):
            skip.add(f"{name}.layer.weight")  # it is not read
        if isinstance(module, StoredWeight):
            writer.add_codes(f"{name}.weight", module.codes, module.weight_bits)
            skip.add(f"{name}.weight")
    return _common(model, record, writer, skip) | {"architecture": None}


def build_prepared(manifest: Manifest, tensors: TensorReader, network: nn.Module | None, names: Names) -> nn.Module:
    """The prepared network. network: the float network, if the manifest does not say how it is built; is changed."""
    packed = manifest["packed"]
    network = _prepared(manifest, tensors, network, names)
    found = quantizers(network)
    for name, entry in packed.items():
        own = [found[q] for q in entry["by"]]
        codes = [tensors[_codes_name(name, i)] for i in range(len(own))]
        shift = tensors[f"{name}#shift"] if entry.get("shift") else None
        value = Master(own, codes, bool(entry.get("transposed")), shift).value()
        network.get_parameter(name).data = value.to(getattr(torch, entry["dtype"]))
    return _finished(network, manifest)


def build_weight_only(manifest: Manifest, tensors: TensorReader, network: nn.Module) -> nn.Module:
    """The network whose weights are codes. network: the float network; is changed."""
    _prepare(network, manifest)
    for module in network.modules():
        for _, _, quantizer in quantized_weights(module):
            one = torch.ones(quantizer.n_qparams)
            quantizer.set_qparams(QParams(one, torch.zeros_like(one, dtype=torch.int32)))
    network = with_weight_only_layers(network)
    _load_quantizers(network, tensors)
    prefixes = tuple(f"{name}." for name in quantizers(network))
    shapes = {name: tensors.shape(name) for name in tensors.names if not name.startswith(prefixes)}
    unused = (*prefixes, *(f"{n}.layer.weight" for n, m in network.named_modules() if isinstance(m, WeightOnlyLayer)))
    fill(network, tensors.__getitem__, shapes, manifest["aliases"], lambda name: name.startswith(unused))
    return _finished(network, manifest)


def _common(model: nn.Module, record: PreparedRecord, writer: TensorWriter, skip: set[str]) -> Manifest:
    """The entries of every manifest. skip: names of tensors that are not stored here, but as codes or not at all."""
    own = _state_of(quantizers(model))
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        if name not in skip and not any(name.startswith(f"{prefix}.") for prefix in quantizers(model)):
            writer.add(name, tensor)
    for name, tensor in own.items():
        writer.add(name, tensor)
    return {
        "architecture": _architecture(model, record, skip | set(tensors)),
        "class": type(model).__name__,
        "policy": plain_data(record.policy),
        "capture": record.capture,
        "training": record.training,
        "bits": bits_in_force(model),
        "aliases": aliases_of(model),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
    }


def _architecture(model: nn.Module, record: PreparedRecord, stored: set[str]) -> Mapping[str, Any] | None:
    """How the float network is built; None if it is not plain data, or was changed after `prepare`."""
    if record.architecture is None:
        return None
    aliases = aliases_of(model)
    described = {aliases.get(name, name) for name in tensor_names(dict(record.architecture))}
    return record.architecture if described <= stored else None


def _state_of(found: Mapping[str, Quantizer]) -> dict[str, Tensor]:
    """The state of quantizers, without the counters of oscillations, which start again."""
    return {
        f"{prefix}.{name}": tensor
        for prefix, quantizer in found.items()
        for name, tensor in quantizer.state_dict().items()
        if not name.startswith("oscillations.")
    }


def _prepared(manifest: Manifest, tensors: TensorReader, network: nn.Module | None, names: Names) -> nn.Module:
    """The prepared network with all values but those of the packed weights."""
    aliases, packed = manifest["aliases"], manifest["packed"]
    if network is None:
        network = _built(manifest, tensors, names)
    else:
        own = {aliases.get(n, n) for n, _ in (*network.named_parameters(), *network.named_buffers())}
        shapes = {name: tensors.shape(name) for name in own & tensors.names - set(packed)}
        fill(network, tensors.__getitem__, shapes, aliases, lambda name: aliases.get(name, name) in packed)
    for name in packed:
        shape, expected = _shape(name, manifest, tensors), tuple(network.get_parameter(name).shape)
        if shape != expected:
            raise ValueError(f"{name!r} has the shape {list(shape)}, in the network {list(expected)}")
    filled = {aliases.get(n, n) for n, _ in (*network.named_parameters(), *network.named_buffers())}
    _prepare(network, manifest)
    if manifest["bits"] is not None:
        set_bits(network, manifest["bits"])
    _load_quantizers(network, tensors)
    of_quantizers = tuple(f"{name}." for name in quantizers(network))
    added = {*dict(network.named_parameters()), *dict(network.named_buffers())}  # by capture, which knows their values
    left = tensors.names - filled - added - {name for name in tensors.names if name.partition("#")[0] in packed}
    if missing := sorted(name for name in left if not name.startswith(of_quantizers)):
        raise ValueError(f"the network has no {', '.join(missing[:3])}")
    return network


def _prepare(network: nn.Module, manifest: Manifest) -> None:
    """Prepare the float network as the saved one was, in place."""
    with training_mode(network, manifest["training"]):  # torch.export sees other operations in training
        prepare_as_recorded(network, load_policy(manifest["policy"]), manifest["capture"])


def _load_quantizers(network: nn.Module, tensors: TensorReader) -> None:
    for prefix, quantizer in quantizers(network).items():
        quantizer.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in quantizer.state_dict()})


def _built(manifest: Manifest, tensors: TensorReader, names: Names) -> nn.Module:
    aliases, packed = manifest["aliases"], manifest["packed"]
    made: dict[str, nn.Parameter] = {}

    def parameter(name: str) -> nn.Parameter:
        name = aliases.get(name, name)
        if name not in made:
            if name in packed:
                made[name] = placeholder(_shape(name, manifest, tensors), getattr(torch, packed[name]["dtype"]))
            else:
                value = tensors[name]
                made[name] = nn.Parameter(value, requires_grad=value.is_floating_point() or value.is_complex())
        return made[name]

    builder = ModuleBuilder(names, lambda name: tensors[aliases.get(name, name)], parameter)
    return builder.build(manifest["architecture"])


def _shape(name: str, manifest: Manifest, tensors: TensorReader) -> tuple[int, ...]:
    """The shape of a parameter whose codes alone are stored."""
    shape = tensors.shape(name)
    return shape[::-1] if manifest["packed"][name].get("transposed") else shape


def _finished(network: nn.Module, manifest: Manifest) -> nn.Module:
    frozen = set(manifest["frozen"])
    for name, parameter in network.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for quantizer in quantizers(network).values():
        quantizer.mode = Mode.QUANTIZE
    return network.eval()


def _codes_name(parameter: str, i: int) -> str:
    return f"{parameter}#{i}" if i else parameter
