"""The fake-quantize operation alone, forward and backward, over the memory floor and beside the operations of torch.

The floor is `a + b` on the same tensor: two reads and one write, which no computation of a new tensor can beat. Torch has
operations with fixed scales and operations that learn scale and zero-point. All take turns in one process; about one minute on
two threads of a CPU.

python -m benchmarks.operation --threads 2
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.failure import failure_line
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.timing import ratios_to, time_in_turns
from qat.functional import fake_quantize

ACTIVATION, WEIGHT = (128, 16, 32, 32), (512, 512, 3, 3)
"""The first site of ResNet-20 at batch 128; the largest weight of ResNet-18."""
FLOOR = "a + b"

Forward = Callable[[Tensor], Tensor]
Operations = dict[str, tuple[Forward, list[Tensor]]]


def per_tensor(device: str) -> Operations:
    """Unsigned 8 bits, one scale: each operation and the tensors it learns."""
    scale = torch.tensor([0.02], device=device)
    learned, torch_scale = (scale.clone().requires_grad_() for _ in range(2))
    zero, zero_point = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.int32, device=device)
    learned_zero = zero.clone().requires_grad_()
    return {
        "qat, learned scale": (lambda x: fake_quantize(x, learned, 0, 0, 255), [learned]),
        "qat, fixed scale": (lambda x: fake_quantize(x, scale, 0, 0, 255), []),
        "torch, fixed scale": (lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero_point, 0, 255), []),
        "torch, learned scale": (
            lambda x: torch._fake_quantize_learnable_per_tensor_affine(x, torch_scale, learned_zero, 0, 255, 1.0),
            [torch_scale, learned_zero],
        ),
    }


def per_channel(device: str, channels: int) -> Operations:
    """Signed narrow 8 bits, one scale per output channel: each operation and the tensors it learns."""
    scale = torch.full((channels,), 0.02, device=device)
    column = scale.view(-1, 1, 1, 1)
    learned, torch_scale = column.clone().requires_grad_(), scale.clone().requires_grad_()
    zero_point = torch.zeros(channels, dtype=torch.int32, device=device)
    learned_zero = torch.zeros(channels, device=device, requires_grad=True)
    return {
        "qat, learned scale": (lambda x: fake_quantize(x, learned, 0, -127, 127), [learned]),
        "qat, fixed scale": (lambda x: fake_quantize(x, column, 0, -127, 127), []),
        "torch, fixed scale": (
            lambda x: torch.fake_quantize_per_channel_affine(x, scale, zero_point, 0, -127, 127),
            [],
        ),
        "torch, learned scale": (
            lambda x: torch._fake_quantize_learnable_per_channel_affine(
                x, torch_scale, learned_zero, 0, -127, 127, 1.0
            ),
            [torch_scale, learned_zero],
        ),
    }


def calls_and_errors(
    operations: Operations, x: Tensor, grad: Tensor, compiled: bool
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """A call of forward and backward for each operation and of the floor; and the errors of operations that cannot run."""
    detached = x.detach()
    calls: dict[str, Callable[[], object]] = {FLOOR: lambda: torch.add(detached, grad)}
    errors = {}
    for name, (operation, learned) in operations.items():
        torch._dynamo.reset()
        call = _forward_and_backward(torch.compile(operation) if compiled else operation, learned, x, grad)
        try:
            call()
        except Exception as error:
            errors[name] = failure_line(error)
        else:
            calls[name] = call
    return calls, errors


def _forward_and_backward(operation: Forward, learned: list[Tensor], x: Tensor, grad: Tensor) -> Callable[[], object]:
    def call() -> None:
        operation(x).backward(grad)
        x.grad = None
        for tensor in learned:
            tensor.grad = None

    return call


def main() -> None:
    parser = argument_parser(__doc__, with_device=True)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--small", action="store_true", help="tensors of a few thousand elements: to try the program")
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--out", type=Path, help="default: results/operation/<device>.json")
    options = parse_options(parser)
    device = options.device
    torch.manual_seed(0)
    out = options.out or RESULTS / f"operation/{device}.json"
    activation, weight = ((4, 4, 8, 8), (8, 4, 3, 3)) if options.small else (ACTIVATION, WEIGHT)
    kinds = {
        "per tensor": (
            per_tensor(device),
            torch.rand(activation, device=device) * 6,
            torch.randn(activation, device=device),
        ),
        "per channel": (
            per_channel(device, weight[0]),
            torch.randn(weight, device=device),
            torch.randn(weight, device=device),
        ),
    }
    cases: list[dict[str, Any]] = []
    for mode in options.modes:
        for kind, (operations, x, grad) in kinds.items():
            x.requires_grad_()
            calls, errors = calls_and_errors(operations, x, grad, compiled=mode == "compiled")
            rows = ratios_to(FLOOR, time_in_turns(calls, options.rounds, device))
            cases.append({"kind": kind, "shape": list(x.shape), "mode": mode, "operations": rows, "errors": errors})
            write_measurement(out, {"cases": cases}, device)
            print(f"{kind}, {tuple(x.shape)}, {mode}")
            for name, row in rows.items():
                print(f"  {name:22} {1000 * row['seconds']:9.3f} ms   {row['ratio']:6.2f} x", flush=True)
            for name, error in errors.items():
                print(f"  {name:22} {error}")


if __name__ == "__main__":
    main()
