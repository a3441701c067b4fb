"""One description for every spelling of an operation: modules, functions, methods, keywords, torch.fx and torch.export."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from qat.operations import (
    Add,
    AveragePool,
    Concatenate,
    Elementwise,
    Float,
    MatMul,
    MaxPool,
    Mean,
    Move,
    Multiply,
    Operation,
    PadZeros,
    Part,
    Rectify,
    Region,
    Role,
    describe_graph,
)


class Network(nn.Module):
    """Calls a function, or a module, on the result of an operation that stays in float."""

    def __init__(self, function: Callable[..., Any], module: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        self.m = module
        self.register_buffer("offset", torch.ones(1))

    def forward(self, x: Tensor) -> Any:
        x = x.cumsum(3)
        return self.function(x) if self.m is None else self.m(x)


def last(function: Callable[..., Any] | nn.Module, exported: bool = False) -> Operation:
    """The description of what `function` computes."""
    network: nn.Module = Network(lambda x: x, function) if isinstance(function, nn.Module) else Network(function)
    if exported:
        network = torch.export.export(network.eval(), (torch.rand(2, 4, 8, 8),), strict=False).module()
        graph = network.graph
    else:
        graph = fx.Tracer().trace(network)
    operations = describe_graph(network, graph)
    result = next(node for node in graph.nodes if node.op == "output").all_input_nodes[0]
    return operations[result]


def facts(operation: Operation) -> tuple[type[Operation], dict[str, Any]]:
    """The kind and the arguments of an operation, without the nodes it reads."""
    hidden = ("inputs", "nodes", "module", "name")
    return type(operation), {k: v for k, v in vars(operation).items() if k not in hidden}


SPELLINGS: dict[str, list[Callable[[Tensor], Any] | nn.Module]] = {
    "relu": [torch.relu, F.relu, nn.ReLU(), lambda x: x.relu(), lambda x: x.clamp(min=0), lambda x: torch.clamp_min(x, 0)],
    "relu6": [F.relu6, nn.ReLU6(), nn.Hardtanh(0, 6), lambda x: x.clamp(0, 6.0), lambda x: F.hardtanh(x, 0.0, 6.0)],
    "sigmoid": [torch.sigmoid, F.sigmoid, nn.Sigmoid(), lambda x: x.sigmoid()],
    "cat": [
        lambda x: torch.cat([x, x], 1),
        lambda x: torch.cat((x, x), axis=1),
        lambda x: torch.concat(tensors=[x, x], dim=1),
    ],
    "mean": [
        lambda x: x.mean((2, 3)),
        lambda x: x.mean(dim=[2, 3]),
        lambda x: torch.mean(x, axis=(2, 3)),
        lambda x: torch.mean(input=x, dim=(2, 3), keepdims=False),
    ],
    "mean that keeps its axes": [
        lambda x: x.mean((-2, -1), True),
        lambda x: x.mean((-2, -1), keepdims=True),
        nn.AdaptiveAvgPool2d(1),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
        lambda x: F.adaptive_avg_pool2d(input=x, output_size=[1, 1]),
    ],
    "average pool": [nn.AvgPool2d(2), lambda x: F.avg_pool2d(x, 2), lambda x: F.avg_pool2d(input=x, kernel_size=(2, 2))],
    "max pool": [
        nn.MaxPool2d(3, 2, 1),
        lambda x: F.max_pool2d(x, 3, 2, padding=1),
        lambda x: F.max_pool2d(input=x, kernel_size=3, stride=(2, 2), padding=1),
    ],
    "add": [
        lambda x: x + x.flip(1),
        lambda x: torch.add(x, x.flip(1)),
        lambda x: x.add(other=x.flip(1)),
        lambda x: torch.add(input=x, other=x.flip(1)),
    ],
    "multiply": [lambda x: x * x.flip(1), lambda x: torch.mul(x, x.flip(1)), lambda x: x.mul_(x.flip(1))],
    "matmul": [lambda x: x @ x.mT, lambda x: torch.matmul(x, x.mT), lambda x: x.matmul(x.mT)],
    "pad": [
        nn.ZeroPad2d((1, 2, 0, 0)),
        lambda x: F.pad(x, (1, 2, 0, 0)),
        lambda x: F.pad(x, pad=[1, 2, 0, 0], mode="constant", value=0.0),
    ],
    "permute": [
        lambda x: x.permute(0, 2, 3, 1),
        lambda x: x.permute(dims=(0, 2, 3, 1)),
        lambda x: torch.permute(x, (0, 2, 3, 1)),
    ],
}  # fmt: skip
EXPECTED: dict[str, Operation] = {
    "relu": Rectify(()),
    "relu6": Rectify((), 6.0),
    "sigmoid": Elementwise((), "sigmoid", True),
    "cat": Concatenate((), 1),
    "mean": Mean((), (2, 3), keepdim=False),
    "mean that keeps its axes": Mean((), (-2, -1), keepdim=True),
    "average pool": AveragePool((), (2, 2), (2, 2), (0, 0), count_include_pad=True),
    "max pool": MaxPool((), on_bytes=False, kernel=(3, 3), stride=(2, 2), padding=(1, 1), dilation=(1, 1)),
    "add": Add(()),
    "multiply": Multiply(()),
    "matmul": MatMul(()),
    "pad": PadZeros((), pad=(1, 2, 0, 0)),
    "permute": Move(()),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_all_spellings_have_one_description(name: str) -> None:
    for i, spelling in enumerate(SPELLINGS[name]):
        assert facts(last(spelling)) == facts(EXPECTED[name]), i
    assert facts(last(SPELLINGS[name][-1], exported=True)) == facts(EXPECTED[name])


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.clamp(min=0, max=x.shape[1]),  # a size is not a number
        lambda x: F.pad(x, (1, 1), value=1.0),
        lambda x: F.avg_pool2d(x, 2, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 2, divisor_override=3),
        lambda x: F.adaptive_avg_pool2d(x, 2),
        lambda x: torch.add(x, x.flip(1), alpha=2),
        lambda x: x.mean(),
        lambda x: x.softmax(1),
        lambda x: x.cumsum(1),
    ],
)
def test_what_has_no_integer_form_stays_in_float(function: Callable[[Tensor], Tensor]) -> None:
    assert isinstance(last(function), Float)


@pytest.mark.parametrize(
    ("function", "nonnegative"),
    [
        (lambda x: x.sigmoid(), True),
        (lambda x: F.softmax(x, 1), True),
        (lambda x: x.abs(), True),
        (lambda x: x.square(), True),
        (lambda x: x * x, True),
        (lambda x: x**2, True),
        (lambda x: x**3, False),
        (lambda x: F.softplus(x), True),
        (lambda x: x.clamp(min=0.5), True),
        (lambda x: x.sigmoid() + 1, True),
        (lambda x: x.sigmoid() - 1, False),
        (lambda x: x.sigmoid() * -1, False),
        (lambda x: x.exp().flatten(1), True),
        (lambda x: x * torch.sigmoid(x), False),
    ],
)
def test_the_sign_of_the_result(function: Callable[[Tensor], Tensor], nonnegative: bool) -> None:
    assert is_called_nonnegative(function) is nonnegative


def is_called_nonnegative(function: Callable[[Tensor], Tensor]) -> bool:
    graph = fx.Tracer().trace(network := Network(function))
    known: dict[fx.Node, bool] = {}
    for node, operation in describe_graph(network, graph).items():
        known[node] = operation.is_nonnegative([known[n] for n in operation.inputs])
    return known[next(node for node in graph.nodes if node.op == "output").all_input_nodes[0]]


@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("number", [-2.0, -0.5, 0.0, 0.5, 2.0, 3.0])
@pytest.mark.parametrize(
    "function",
    [
        *(lambda x, n: x + n, lambda x, n: n + x, lambda x, n: x * n, lambda x, n: n * x, lambda x, n: x - n),
        *(lambda x, n: n - x, lambda x, n: x / n, lambda x, n: n / x, lambda x, n: x**n, lambda x, n: n**x),
        *(lambda x, n: torch.add(x, 1.0, alpha=n), lambda x, n: torch.add(x, n, alpha=-2.0)),
        *(lambda x, n: torch.rsub(x, n), lambda x, n: torch.sub(x, n, alpha=-1.0)),
        *(lambda x, n: x.clamp(n), lambda x, n: x.clamp(max=n), lambda x, n: x.clamp(0.1, n)),
        *(lambda x, n: F.hardtanh(x, n - 1, n), lambda x, n: F.softplus(x, beta=n or 1.0), lambda x, n: F.elu(x, n)),
        *(lambda x, n: F.celu(x, n or 1.0), lambda x, n: F.leaky_relu(x, n), lambda x, n: F.threshold(x, 0.3, n)),
        *(lambda x, n: torch.logaddexp(x - n, x - n), lambda x, n: torch.maximum(x, x - n)),
    ],
)
def test_no_result_that_is_called_nonnegative_is_negative(
    function: Callable[[Tensor, float], Tensor], number: float, absolute: bool
) -> None:
    def computed(x: Tensor) -> Tensor:
        return function(x.abs() if absolute else x.flatten(), number)

    smallest = computed(torch.linspace(-4, 4, 63)).nan_to_num(0.0).min()
    assert smallest >= 0 or not is_called_nonnegative(computed)


@pytest.mark.parametrize("name", ["relu", "exp", "softmax", "flatten", "add"])
def test_a_function_of_the_user_is_not_the_operation_of_torch_that_is_called_so(name: str) -> None:
    def function(x: Tensor) -> Tensor:
        return -x

    function.__name__ = name
    graph = fx.Graph()
    x = graph.placeholder("x")
    call = graph.call_function(function, (x,))
    assert describe_graph(nn.Module(), graph)[call] == Float((x,))


def test_a_function_of_one_tensor_is_one_region() -> None:
    graph = fx.Tracer().trace(network := Network(lambda x: x.flip(1) * F.relu6(x.flip(2) + 3) / 6))
    of_two_tensors = describe_graph(network, graph)[graph.find_nodes(op="call_function", target=operator.mul)[0]]
    assert isinstance(of_two_tensors, Multiply)

    def hard_swish(x: Tensor) -> Tensor:
        y = x.flip(1)
        return y * F.relu6(y + 3) / 6

    graph = fx.Tracer().trace(network := Network(hard_swish))
    operations = describe_graph(network, graph)
    regions = [o for o in operations.values() if isinstance(o, Region)]
    assert [n.name for n in regions[0].nodes] == ["add", "relu6", "mul", "truediv"]
    assert regions[0].inputs[0].name == "flip"
    assert sum(isinstance(o, Part) for o in operations.values()) == 3


def test_masks_and_positions_are_constants() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(x) + (1.0 - self.mask) * -1e9

    tracer = fx.Tracer()
    tracer.proxy_buffer_attributes = True
    graph = tracer.trace(network := Masked())
    operations = describe_graph(network, graph)
    roles = {node.name: operations[node].role for node in graph.nodes}
    assert roles["mul"] is Role.CONSTANT
    assert roles["add"] is Role.FLOAT
