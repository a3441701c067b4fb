"""An integer model to a manifest and back: its graph, its modules, its codes. The float network's classes are not needed."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from qat.export.packed.filling import aliases_of
from qat.export.packed.tensors import TensorReader, TensorWriter
from qat.integer.integer_model import IntegerModel
from qat.integer.layers import IntegerLayer
from qat.integer.weight_only import StoredWeight
from qat.nn import LAYERS, as_quantized, has_quantized_matrices, is_quantized, layer_type, options, quantize_matrices
from qat.structure import (
    Describer,
    Description,
    ModuleBuilder,
    Names,
    build_graph,
    build_result,
    describe_graph,
    describe_module,
    describe_result,
)
from qat.structure.modules import CONTAINER, attributes_of, description_of
from qat.structure.names import path_of
from qat.torch_private import own_modules

MATRICES = "computes with given matrices"
"""The key of modules whose matrices are stored as codes."""


def describe_integer(model: IntegerModel, names: Names, writer: TensorWriter) -> dict[str, Any]:
    """What the manifest says of an integer model whose tensors `writer` takes.

    Raises:
        NotPlainError: it contains a module or calls a function that a file may not name.
    """
    written, seen = _Written(model, names, writer), dict[nn.Module, str]()
    children = {
        name: describe_module(child, written.describe, name, written.special, seen)
        for name, child in own_modules(model).items()
        if child is not None
    }
    root = description_of(model, CONTAINER, {}, written.describe, "") | {"children": children}
    written.write_tensors()
    return {
        "class": type(model).__name__,
        "policy": model.policy,
        "modules": root,
        "graph": describe_graph(model.graph, names),
        "result": describe_result(model.result),
        "left_out": list(model.left_out),
        "aliases": aliases_of(model),
        "frozen": [name for name, p in model.named_parameters() if not p.requires_grad],
    }


def build_integer(manifest: dict[str, Any], tensors: TensorReader, names: Names) -> IntegerModel:
    """The integer model that a manifest describes, in evaluation mode.

    Raises:
        ValueError: the manifest is not of this format, or names what a file may not name.
    """
    aliases, made = manifest["aliases"], dict[str, nn.Parameter]()

    def tensor(name: str) -> Tensor:
        return tensors[aliases.get(name, name)]

    def parameter(name: str) -> nn.Parameter:
        name = aliases.get(name, name)
        if name not in made:
            made[name] = nn.Parameter(tensors[name], requires_grad=name not in manifest["frozen"])
        return made[name]

    special = {MATRICES: lambda module, _: quantize_matrices(module, {})}
    root = ModuleBuilder(names, tensor, parameter, special).build(manifest["modules"])
    if not str(manifest["class"]).isidentifier():
        raise ValueError(f"{manifest['class']!r:.80} is not the name of a class")
    graph: fx.Graph = build_graph(manifest["graph"], names)
    model = IntegerModel(root, graph, manifest["class"])
    model.policy = manifest["policy"]
    model.result = build_result(manifest["result"], names)
    model.left_out = tuple(manifest["left_out"])
    return model.eval()


class _Written:
    """The modules and tensors of an integer model on their way into a manifest."""

    def __init__(self, model: IntegerModel, names: Names, writer: TensorWriter) -> None:
        self.model, self.writer = model, writer
        self.describe = Describer(names, self._store)
        self.unused: set[str] = set()
        """Names of tensors that are not stored under their own name: float weights behind codes, and biases stored already."""

    def special(self, module: nn.Module, where: str) -> Description | None:
        """Layers and modules that are given their weights, whose classes are made at run time."""
        if is_quantized(module):
            return self._layer(module, where)
        if has_quantized_matrices(module):
            return self._given_matrices(module, where)
        return None

    def write_tensors(self) -> None:
        """Everything that was not written yet."""
        codes = {
            f"{name}.weight": (module.codes if isinstance(module, StoredWeight) else module.weight, module.weight_bits)
            for name, module in self.model.named_modules()
            if isinstance(module, IntegerLayer | StoredWeight)
        }
        for name, (tensor, bits) in codes.items():
            self.writer.add_codes(name, tensor, bits)
        for name, tensor in (*self.model.named_parameters(), *self.model.named_buffers()):
            if name not in codes and name not in self.unused:
                self.writer.add(name, tensor)

    def _store(self, tensor: Tensor) -> str:
        return self.writer.add(f"attribute#{len(self.writer.stored) + len(self.unused)}", tensor)

    def _layer(self, module: nn.Module, where: str) -> Description:
        layer = as_quantized(module)
        cls = LAYERS[layer_type(module)]
        attributes = {key: value for key, value in options(module).items() if key != "lender"}
        described = description_of(nn.Module(), path_of(cls), attributes, self.describe, where)
        self.unused.add(f"{where}.weight")
        described["parameters"] = ["-weight"]
        bias = getattr(layer, "bias", None)  # embeddings have none
        if bias is not None:
            self.writer.add(f"{where}.bias", bias)
            self.unused.add(f"{where}.bias")
        if cls.__name__ != "Embedding":
            described["parameters"].append("bias" if bias is not None else "-bias")
        quantizer = layer.input_quantizer
        child = None if quantizer is None else describe_module(quantizer, self.describe, f"{where}.input_quantizer")
        return described | {"children": {"weight_quantizer": None, "input_quantizer": child}, "eval": True}

    def _given_matrices(self, module: nn.Module, where: str) -> Description:
        base = next(cls for cls in type(module).__mro__ if "recipe_of_class" not in vars(cls))
        attributes = {k: v for k, v in attributes_of(module).items() if k != "quantized_matrices"}
        children = {
            name: describe_module(child, self.describe, f"{where}.{name}", self.special)
            for name, child in module.named_children()
            if name != "weight_quantizers"
        }
        described = description_of(module, path_of(base), attributes, self.describe, where)
        return described | {"children": children, MATRICES: True}
