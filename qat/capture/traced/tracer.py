"""The torch.fx way to a graph."""

from __future__ import annotations

import dis
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from qat.capture.graphs.arguments import Arguments, called_by_name, is_fixed_value, required_arguments
from qat.capture.graphs.in_place import OPERATORS
from qat.capture.graphs.rewriting import erase_unused
from qat.capture.state.attributes import NotInGraphError
from qat.capture.traced.autograd_functions import functions_as_nodes
from qat.capture.traced.hooks import call_with_hooks
from qat.contexts import training_mode
from qat.nn import is_batch_norm, is_identity_in_evaluation, is_layer, is_quantized
from qat.quantizers import Quantizer
from qat.torch_private import assert_function, own_buffers


class Tracer(fx.Tracer):
    """Modules with a known forward are leaves; a subclass with a forward of its own is traced into.

    Parameters and buffers are nodes, so that what forward computes from them is computed again whenever they change.
    """

    def __init__(self) -> None:
        super().__init__(param_shapes_constant=True)
        self.tensor_names: dict[int, str] = {}
        self.asserted: list[fx.Node] = []
        """Conditions of `assert` statements."""
        self.records_gradients = torch.is_grad_enabled()

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        """The graph of root.forward."""
        self.tensor_names = {id(tensor): name for name, tensor in [*root.named_buffers(), *root.named_parameters()]}
        return super().trace(root, concrete_args)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether calls of the module are nodes."""
        if isinstance(m, Quantizer) or is_batch_norm(m) or is_layer(m) or is_quantized(m):
            return True
        if is_identity_in_evaluation(m):
            return True
        definer = next(c for c in type(m).__mro__ if "forward" in vars(c))
        return definer.__module__.startswith("torch.") and super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A node for a leaf, with what its hooks compute around it; the nodes of forward for another module."""
        if not self.is_leaf_module(m, self.path_of_module(m)):
            return super().call_module(m, forward, args, kwargs)
        super_call = super().call_module
        return call_with_hooks(m, lambda args, kwargs: super_call(m, forward, args, kwargs), args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, fx.Proxy]) -> Any:
        """A proxy for a parameter or a buffer; the value of anything else."""
        name = self.tensor_names.get(id(attr_val)) if isinstance(attr_val, Tensor) else None
        if name is None:
            return attr_val
        if name not in parameter_proxy_cache:
            parameter_proxy_cache[name] = self.create_proxy(
                "get_attr", name, (), {}, proxy_factory_fn=lambda node: _TensorProxy(node, self, attr_val)
            )
        return parameter_proxy_cache[name]

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        """A node of the graph. Operations without gradients are refused, or, in training, marked in the node's meta."""
        without_gradient = self.records_gradients and not torch.is_grad_enabled() and kind.startswith("call_")
        if without_gradient and not self.root.training:
            raise fx.proxy.TraceError("its forward uses torch.no_grad, which a graph of torch.fx cannot hold")
        node = super().create_node(kind, *args, **kwargs)
        if without_gradient:
            node.meta["no_grad"] = True
        return node

    def to_bool(self, obj: fx.Proxy) -> bool:
        """True for the condition of an `assert`, which is left out; other branches on values have no graph."""
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_filename in (__file__, fx.proxy.__file__):
            frame = frame.f_back
        if frame is None or not _is_asserting(frame):
            return super().to_bool(obj)
        self.asserted.append(obj.node)
        return True


class _TensorProxy(fx.Proxy):
    """A parameter or buffer: its shape is known, its values are not, because they change."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, tensor: Tensor) -> None:
        super().__init__(node, tracer)
        self.tensor = tensor

    @property
    def shape(self) -> torch.Size:
        return self.tensor.shape

    @property
    def ndim(self) -> int:
        return self.tensor.ndim

    def size(self, *dim: int) -> Any:
        return self.tensor.size(*dim)

    def dim(self) -> int:
        return self.tensor.dim()

    def numel(self) -> int:
        return self.tensor.numel()

    def __len__(self) -> int:
        return len(self.tensor)


def traced(model: nn.Module, training: bool, given: Arguments | None = None) -> fx.Graph:
    """The graph of forward in one mode, with the arguments that have no default. Modes are restored.

    given: the arguments of a call. Those without tensors are not inputs, but have their values.

    Raises:
        Exception: anything that a forward raises when it gets proxies instead of tensors.
    """
    names = required_arguments(inspect.signature(model.forward), given)
    fixed = {name: value for name, value in (given or {}).items() if name in names and is_fixed_value(value)}
    names = [name for name in names if name not in fixed]
    if not names:
        raise TypeError("all arguments of forward are optional")
    by_name = called_by_name(model, names, fixed, around=call_with_hooks)
    with training_mode(model, training), by_name, functions_as_nodes(), _buffers_kept(), _operators_in_place():
        tracer = Tracer()
        graph = tracer.trace(model)
    erase_unused([n for n in graph.nodes if n.target is assert_function or n.op == "get_attr"])
    erase_unused(tracer.asserted)
    graph.lint()
    return graph


@contextmanager
def _buffers_kept() -> Iterator[None]:
    """Inside the `with`, a forward that assigns a tensor to a buffer overwrites it in training and is refused in evaluation.

    The error names the buffer; torch's own would only name its type.
    """
    original = nn.Module.__setattr__

    def assign(module: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, fx.Proxy) and own_buffers(module).get(name) is not None:
            buffer = getattr(module, name)
            tracer: Any = getattr(buffer, "tracer", None)
            if tracer is not None and tracer.root.training:
                buffer.copy_(value)  # in evaluation, a graph has no part that only training runs
                return
            raise NotInGraphError([name])
        original(module, name, value)

    nn.Module.__setattr__ = assign  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        nn.Module.__setattr__ = original  # type: ignore[method-assign]


@contextmanager
def _operators_in_place() -> Iterator[None]:
    """Inside the `with`, x += y overwrites x, under all its names; torch.fx would write x = x + y."""

    def in_place(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(x: fx.Proxy, y: Any) -> Any:
            name = OPERATORS[function].__name__
            return x.tracer.create_proxy("call_function", function, (x, y), {}, name=name)

        return call

    names = {f"__{function.__name__}__": in_place(function) for function in OPERATORS}
    for name, method in names.items():
        setattr(fx.Proxy, name, method)
    try:
        yield
    finally:
        for name in names:
            delattr(fx.Proxy, name)


def _is_asserting(frame: FrameType) -> bool:
    """Whether the frame asks for a truth value to decide an `assert` statement."""
    instructions = list(dis.get_instructions(frame.f_code))
    here = next((i for i, step in enumerate(instructions) if step.offset == frame.f_lasti), None)
    if here is None:
        return False
    if instructions[here].opname in ("TO_BOOL", "COMPARE_OP"):  # from Python 3.13 on, before the jump
        here += 1
    jump = instructions[here]
    if "IF_TRUE" in jump.opname:
        target = here + 1
    elif "IF_FALSE" in jump.opname:
        target = next((i for i, step in enumerate(instructions) if step.offset == jump.argval), here)
    else:
        return False
    failing = instructions[target]
    return failing.opname == "LOAD_ASSERTION_ERROR" or (
        sys.version_info >= (3, 14) and failing.opname == "LOAD_COMMON_CONSTANT" and failing.argval is AssertionError
    )
