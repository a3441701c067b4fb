"""Trees of modules as plain data: their classes, their attributes, the names of their tensors; and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from qat.structure.names import Names, path_of
from qat.structure.values import Describer, NotPlainError, Reader
from qat.torch_private import FLAT_WEIGHTS, buffers_not_saved, own_buffers, own_modules, own_parameters

Description = dict[str, Any]
"""{"class", "attributes", "parameters", "buffers", "not_persistent", "children", "eval"}, without what is empty. A parameter or
buffer that is None is a name with a "-" before it."""

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_HOOKS = tuple(key for key in vars(nn.Module()) if key.endswith("_hooks"))
CONTAINER = "torch.nn.modules.module.Module"


def describe_module(
    module: nn.Module,
    describe: Describer,
    where: str = "",
    special: Callable[[nn.Module, str], Description | None] = lambda module, where: None,
    seen: dict[nn.Module, str] | None = None,
) -> Description:
    """A module and all its submodules.

    Args:
        module: any module.
        describe: describes attributes.
        where: its name.
        special: describes modules that need more than this; returns None for all others.
        seen: module -> its name, of those that are described already: one in two places stays one.

    Raises:
        NotPlainError: a class that a file may not name, hooks, or an attribute that is not plain data.
    """
    seen = {} if seen is None else seen
    if module in seen:
        return {"same": seen[module]}
    seen[module] = where
    if (description := special(module, where)) is not None:
        return description
    cls = type(module)
    if not describe.names.knows(cls):
        raise NotPlainError(f"{where or 'the network'} is a {path_of(cls)}, which a file may not name")
    if any(vars(module).get(key) for key in _HOOKS) or "forward" in vars(module):
        raise NotPlainError(f"{where or 'the network'} has hooks, or a forward of its own")
    children = {
        name: None if child is None else describe_module(child, describe, f"{where}.{name}".lstrip("."), special, seen)
        for name, child in own_modules(module).items()
    }
    return description_of(module, path_of(cls), attributes_of(module), describe, where) | (
        {"children": children} if children else {}
    )


def describe_architecture(model: nn.Module) -> Description | None:
    """A network of known classes; None if it is not one, or not plain data."""
    try:
        return describe_module(model, Describer(Names()))
    except NotPlainError:
        return None


def description_of(
    module: nn.Module, cls: str, attributes: Mapping[str, Any], describe: Describer, where: str
) -> Description:
    """A module alone, under this class and with these attributes."""
    described = {key: describe(value, f"{where}.{key}".lstrip(".")) for key, value in attributes.items()}
    tensors = {
        "parameters": [name if p is not None else f"-{name}" for name, p in own_parameters(module).items()],
        "buffers": [name if b is not None else f"-{name}" for name, b in own_buffers(module).items()],
        "not_persistent": sorted(buffers_not_saved(module)),
    }
    result = {"class": cls, "attributes": described, **tensors, "eval": not module.training}
    return {key: value for key, value in result.items() if value}


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """The attributes of a module that are its own, without its tensors and submodules."""
    skipped = {*_OF_EVERY_MODULE, *FLAT_WEIGHTS, "_qat"}
    return {key: value for key, value in vars(module).items() if key not in skipped}


def tensor_names(description: Description, prefix: str = "") -> Iterator[str]:
    """The names of all parameters and buffers in a description; of tied ones, all."""
    for name in (*description.get("parameters", ()), *description.get("buffers", ())):
        if not name.startswith("-"):
            yield prefix + name
    for name, child in description.get("children", {}).items():
        if child is not None:
            yield from tensor_names(child, f"{prefix}{name}.")


class ModuleBuilder:
    """From descriptions to modules. Constructors do not run: nothing is initialized that is overwritten a moment later.

    Args:
        names: what a file may name.
        tensor: from the name of a tensor to its value.
        parameter: from the name of a parameter to the parameter: the same object for tied ones.
        special: builds modules that `describe_module` did not describe; by the key in their description.
    """

    def __init__(
        self,
        names: Names,
        tensor: Callable[[str], Tensor],
        parameter: Callable[[str], nn.Parameter],
        special: Mapping[str, Callable[[nn.Module, Any], nn.Module]] | None = None,
    ) -> None:
        self.names, self.tensor, self.parameter, self.special = names, tensor, parameter, special or {}
        self.read = Reader(names, tensor)
        self._made: dict[str, nn.Module] = {}

    def build(self, description: Any, prefix: str = "", depth: int = 0) -> nn.Module:
        """The module.

        Raises:
            ValueError: it is not a description, or names what a file may not name.
        """
        if not isinstance(description, dict) or depth > 100:
            raise ValueError(f"{description!r:.80} describes no module")
        if "same" in description:
            return self._made[description["same"]]
        cls = self.names.find_class(str(description.get("class")))
        if not issubclass(cls, nn.Module):
            raise ValueError(f"{description.get('class')} is not a module")
        module: nn.Module = cls.__new__(cls)
        nn.Module.__init__(module)
        for key, value in description.get("attributes", {}).items():
            if key in _OF_EVERY_MODULE or callable(getattr(cls, key, None)):
                raise ValueError(f"{key!r} is not an attribute that a file may set")
            vars(module)[key] = self.read(value)
        self._add_tensors(module, description, prefix)
        for name, child in description.get("children", {}).items():
            own_modules(module)[name] = None if child is None else self.build(child, f"{prefix}{name}.", depth + 1)
        module.training = not description.get("eval", False)
        if isinstance(module, nn.RNNBase):
            module.cpu()  # makes the lists of its weights
        for key, build in self.special.items():
            if key in description:
                module = build(module, description[key])
        self._made[prefix.removesuffix(".")] = module
        return module

    def _add_tensors(self, module: nn.Module, description: Description, prefix: str) -> None:
        hidden = description.get("not_persistent", ())
        for name in description.get("parameters", ()):
            if name.startswith("-"):
                module.register_parameter(name[1:], None)
            else:
                module.register_parameter(name, self.parameter(prefix + name))
        for name in description.get("buffers", ()):
            bare = name.removeprefix("-")
            value = None if name.startswith("-") else self.tensor(prefix + name)
            module.register_buffer(bare, value, persistent=bare not in hidden)
