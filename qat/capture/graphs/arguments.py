"""The arguments of a call of forward: by name, by position, and as the inputs of a graph."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.operations import PLAIN, check_fixed_argument, check_given_argument, is_label
from qat.torch_private import MappingKey, SequenceKey, tree_flatten_with_path, tree_leaves, tree_map_only

Arguments = Mapping[str, Any]
"""Arguments of forward by name; those of `*xs` are called xs_0, xs_1, ..."""


def call_arguments(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a call of forward by name, without those that equal their defaults.

    signature: that of the bound method.

    Raises:
        TypeError: forward does not take them.
    """
    found: dict[str, Any] = {}
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            found.update({f"{name}_{i}": x for i, x in enumerate(value)})
        elif parameter.kind is parameter.VAR_KEYWORD:
            found.update(value)
        elif not _is_default(value, parameter):
            found[name] = value
    return found


def has_tensors(value: Any) -> bool:
    """Whether there is a tensor in nested tuples, lists and dicts."""
    return any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))


def is_fixed_value(value: Any) -> bool:
    """Whether a value consists of None, numbers, flags and texts, nested or not."""
    return all(type(leaf) in PLAIN for leaf in tree_leaves(value))


def required_arguments(signature: inspect.Signature, given: Arguments | None) -> list[str]:
    """The names of the arguments that have no default, in order.

    given: the arguments of a call, which tell what `*xs` and `**options` hold.

    Raises:
        TypeError: forward takes *args or **kwargs, and no call is given.
    """
    parameters = signature.parameters.values()
    if given is None:
        if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
            raise TypeError("forward takes *args or **kwargs")
        return [p.name for p in parameters if p.default is p.empty]
    optional = {p.name for p in parameters if p.default is not p.empty}
    return [name for name in argument_names(signature, given) if name not in optional]


@contextmanager
def called_by_name(
    model: nn.Module, names: list[str], fixed: Arguments, around: Callable[..., Any] | None = None
) -> Iterator[None]:
    """Inside the `with`, forward takes only the arguments `names`; those in `fixed` have their values.

    A tracer gives every argument a proxy, which would hide an `x is None`.

    around: called in place of forward, with the model, forward as a function of (args, kwargs), args and kwargs.
    """
    cls, signature = type(model), inspect.signature(model.forward)

    def call(module: nn.Module, arguments: Arguments) -> Any:
        args, kwargs = _as_called(signature, {**arguments, **fixed})
        if around is None:
            return cls.forward(module, *args, **kwargs)
        return around(module, lambda args, kwargs: cls.forward(module, *args, **kwargs), args, kwargs)

    scope: dict[str, Any] = {"call": call}
    by_name = ", ".join(f"{name!r}: {name}" for name in names)
    exec(f"def forward({', '.join(['self', *names])}): return call(self, {{{by_name}}})", scope)
    model.__class__ = type(cls.__name__, (cls,), {"forward": scope["forward"], "__module__": cls.__module__})
    try:
        yield
    finally:
        model.__class__ = cls


def take_all_arguments(
    graph: fx.Graph, signature: inspect.Signature, given: Arguments, implied: Arguments | None = None
) -> list[tuple[str, Any]]:
    """Give a graph all arguments of forward, in their order, in place.

    The graph checks that arguments that it does not read have the value that they had when it was made.

    Args:
        graph: its inputs are arguments of forward by name.
        signature: that of the bound method.
        given: the arguments of the call that the graph was made with, without defaults.
        implied: arguments that the graph was made with beside these.

    Returns:
        (name, default) of every input.
    """
    inputs = {str(n.target): n for n in graph.nodes if n.op == "placeholder"}
    implied = implied or {}
    ordered: list[str] = []
    checks: list[tuple[Any, ...]] = []
    optional = False
    for name in argument_names(signature, given):
        parameter = signature.parameters.get(name)
        has_default = parameter is not None and parameter.default is not parameter.empty
        default = implied.get(name, parameter.default if parameter is not None and has_default else None)
        if name not in inputs:
            value = given.get(name, default)
            if not (is_fixed_value(value) and is_fixed_value(default)) or (is_label(name) and name not in given):
                continue
            inputs[name] = graph.placeholder(name)
            checks.append((check_fixed_argument, inputs[name], value, name))
        elif optional:
            has_default, default = True, None
            checks.append((check_given_argument, inputs[name], name))
        optional |= has_default
        if optional:  # Python allows no argument without a default after one that has one
            inputs[name].args = (default,)
        ordered.append(name)
    for name in reversed(ordered):
        next(iter(graph.nodes)).prepend(inputs[name])
    if ordered:
        with graph.inserting_after(inputs[ordered[-1]]):
            for function, *arguments in reversed(checks):
                graph.call_function(function, tuple(arguments))
    return [(name, inputs[name].args[0] if inputs[name].args else None) for name in ordered]


def nest_inputs(graph: fx.Graph, arguments: Arguments) -> None:
    """Give the graph one input for each argument, and read the tensors in lists, dicts and tuples from it, as torch.fx does."""
    paths: list[Any] = [path for path, leaf in tree_flatten_with_path(dict(arguments))[0] if isinstance(leaf, Tensor)]
    leaves = [node for node in graph.nodes if node.op == "placeholder"]
    inputs: dict[str, fx.Node] = {}
    previous = None
    for leaf, (argument, *path) in zip(leaves, paths, strict=True):
        if argument.key in inputs:
            continue
        with graph.inserting_before(leaf):
            inputs[argument.key] = graph.placeholder(argument.key) if path else leaf
        if previous is not None:
            previous.append(inputs[argument.key])
        previous = inputs[argument.key]
    for leaf, (argument, *path) in zip(leaves, paths, strict=True):
        if path:
            read = inputs[argument.key]
            for step in path:
                with graph.inserting_before(leaf):
                    read = graph.call_function(*_step(read, step))
            read.meta = dict(leaf.meta)
            leaf.replace_all_uses_with(read)
            graph.erase_node(leaf)


def argument_names(signature: inspect.Signature, given: Arguments) -> list[str]:
    """The names of all arguments that a call may have; those of `*xs` and `**options` as the given call has them."""
    names: list[str] = []
    for p in signature.parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            names += [name for name in given if name in _of_varargs(p.name, given)]
        elif p.kind is not p.VAR_KEYWORD:
            names.append(p.name)
    return names + [name for name in given if name not in names]


def _of_varargs(name: str, given: Arguments) -> list[str]:
    """xs_0, xs_1, ... as far as they are given."""
    found: list[str] = []
    while f"{name}_{len(found)}" in given:
        found.append(f"{name}_{len(found)}")
    return found


def _as_called(signature: inspect.Signature, arguments: Arguments) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Positional and keyword arguments of a call."""
    args: list[Any] = []
    kwargs = dict(arguments)
    positional = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    varargs = [p for p in signature.parameters.values() if p.kind is p.VAR_POSITIONAL]
    rest = _of_varargs(varargs[0].name, arguments) if varargs else []
    for p in positional:
        if p.name not in kwargs and not rest:
            break
        args.append(kwargs.pop(p.name, p.default))
    return (*args, *(kwargs.pop(name) for name in rest)), kwargs


def _is_default(value: Any, parameter: inspect.Parameter) -> bool:
    if value is parameter.default:
        return True
    return type(value) is type(parameter.default) and type(value) in PLAIN and bool(value == parameter.default)


def _step(node: fx.Node, step: Any) -> tuple[Any, tuple[Any, ...]]:
    """The call that reads what lies in nested values at this step of a path."""
    if isinstance(step, SequenceKey):
        return operator.getitem, (node, step.idx)
    return (operator.getitem, (node, step.key)) if isinstance(step, MappingKey) else (getattr, (node, step.name))


def copies(arguments: Any) -> Any:
    """The arguments with a copy of each tensor, which forward may overwrite; one that occurs twice gets two."""
    return tree_map_only(Tensor, torch.clone, arguments)
