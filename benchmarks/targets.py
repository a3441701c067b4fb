"""Nine files, three networks in w8a8, w4a8 and w4a4, for every target: do they load, compute in integers, and agree? Minutes.

python -m benchmarks.targets --checkpoint resnet20.safetensors --data cifar10/     # without them ResNet-20 is random, too
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.markdown_table import markdown_table
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.program_tables import NOT_MEASURED, with_source
from qat.data import cifar10
from qat.export import RUNTIMES, TARGETS, Target
from qat.export.targets import runtime_of, target_named
from qat.models import ResNetCifar, load_weights, torchvision_model

POLICIES = ("w8a8", "w4a8", "w4a4")
RESNET20, OF_TORCHVISION = "resnet20", ("resnet18", "mobilenet_v2")
ALSO = (("tensorrt", "openvino"),)
"""Targets in other runtimes than their own."""
INTEGER = (
    *("QLinearConv", "QGemm", "QLinearMatMul", "MatMulInteger", "ConvInteger"),
    *(f"{kind} ({bits})" for kind in ("Convolution", "FullyConnected", "MatMul") for bits in ("u8", "i8")),
    *(f"{kind} (XNNPACK)" for kind in ("convolution", "linear")),
    *(f"{kind} (int8)" for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")),
)
"""Operators that compute a layer in integers, as ONNX Runtime, OpenVINO, ExecuTorch and LiteRT call them."""
FLOAT = (
    *("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"),
    *(f"{kind} ({bits})" for kind in ("Convolution", "FullyConnected", "MatMul") for bits in ("f32", "bf16")),
    *("aten.conv2d", "aten.linear", "convolution.out", "addmm.out"),
    *(f"{kind} (float32)" for kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")),
)
"""Operators that compute one in float."""


@dataclass(frozen=True)
class Network:
    """A float network with images to calibrate and to verify with. trained: whether its weights are."""

    name: str
    model: nn.Module
    calibration: Tensor
    images: Tensor
    trained: bool


def networks(options: argparse.Namespace) -> list[Network]:
    """ResNet-20 on CIFAR-10, trained if there are weights; ResNet-18 and MobileNetV2 with random weights, on noise."""
    found = [_resnet20(options)] if RESNET20 in options.networks else []
    for name in OF_TORCHVISION:
        if name not in options.networks:
            continue
        torch.manual_seed(0)
        model = torchvision_model(name, num_classes=1000)
        for module in model.modules():
            if (
                isinstance(module, nn.BatchNorm2d)
                and module.running_mean is not None
                and module.running_var is not None
            ):
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.normal_(module.running_mean, std=0.1)
        x = torch.randn(2 * options.noise, 3, options.size, options.size)
        found.append(Network(name, model.eval(), x[: options.noise], x[options.noise :], trained=False))
    return found


def _resnet20(options: argparse.Namespace) -> Network:
    torch.manual_seed(0)
    model = ResNetCifar(20).eval()
    if options.checkpoint is not None:
        load_weights(model, options.checkpoint)
    if options.data is None:
        x = torch.randn(2 * options.images, 3, 32, 32)
        return Network("resnet20", model, x[: options.images], x[options.images :], options.checkpoint is not None)
    data = cifar10(options.data, limit_train=10 * options.images, limit_test=options.images)
    transform = data.batch_transform().eval()
    train, test = (
        transform(torch.stack([split[i][0] for i in range(min(len(split), options.images))]))
        for split in (data.train, data.test)
    )
    return Network(RESNET20, model, train, test, options.checkpoint is not None)


def measure(network: Network, policy: str, target: Target, runtime: str, folder: Path) -> dict[str, Any]:
    """One file in one runtime."""
    example = network.images[:1]
    case: dict[str, Any] = {"network": network.name, "trained": network.trained, "policy": policy}
    case |= {"target": target.name, "runtime": runtime}
    prepared = qat.prepare(network.model, policy, example, target.name)
    qat.calibrate(prepared, [network.calibration])
    integer = qat.convert(prepared)
    path = folder / f"{network.name}_{policy}_{target.name}{target.suffixes[0]}"
    start = time.perf_counter()
    target.write(integer, example, path)
    found = runtime_of(runtime).verify(path, integer, [network.images], prepared, record=False)
    return case | {
        "version": found.runtime or runtime,
        "passed": found.passed,
        "integer_layers": sum(found.operators.get(name, 0) for name in INTEGER),
        "float_layers": sum(found.operators.get(name, 0) for name in FLOAT),
        "operators": found.operators,
        "codes": found.codes_compared,
        "mismatches": found.code_mismatches,
        "within_tolerance": found.float_ties,
        "propagated": found.propagated,
        "largest_step": found.max_step_difference,
        "samples": found.samples,
        "agreement": found.top1_agreement,
        "size_bytes": path.stat().st_size if path.is_file() else sum(f.stat().st_size for f in path.rglob("*")),
        "seconds": time.perf_counter() - start,
    }


def table(measurement: Mapping[str, Any] | None) -> str:
    """The table of docs/targets.md."""
    if measurement is None:
        return NOT_MEASURED
    rows = [_row(case) for case in measurement["cases"]]
    header = (
        *("network", "policy", "target", "runtime", "passed", "layers in integers"),
        *("codes beyond the tolerance", "by one step, within it", "decides alike", "file"),
    )
    return with_source(markdown_table(header, rows, text_columns=5), measurement)


def _row(case: Mapping[str, Any]) -> list[str]:
    network = f"{case['network']}{', trained' if case['trained'] else ''}"
    begin = [network, f"`{case['policy']}`", f"`{case['target']}`"]
    if "reason" in case:
        return [*begin, case["runtime"], case["reason"], "", "", "", "", ""]
    layers = case["integer_layers"] + case["float_layers"]
    return [
        *begin,
        case["version"],
        "yes" if case["passed"] else "**no**",
        f"{case['integer_layers']} of {layers}" if layers else "not known",
        f"{case['mismatches']:,} of {case['codes']:,}",
        f"{case['within_tolerance']:,}",
        f"{100 * case['agreement']:.1f} % of {case['samples']}",
        f"{case['size_bytes'] / 1e6:.2f} MB",
    ]


def _pairs(names: Sequence[str]) -> list[tuple[Target, str]]:
    own = [(t, t.runs_in) for t in TARGETS if t.name in names]
    return own + [(target_named(t), runtime) for t, runtime in ALSO if t in names]


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="weights of ResNet-20 for CIFAR-10")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--images", type=int, default=200, help="of CIFAR-10, to calibrate and to verify with")
    parser.add_argument("--noise", type=int, default=4, help="images for networks with random weights")
    parser.add_argument("--size", type=int, default=96, help="pixels per side of those")
    parser.add_argument("--targets", nargs="+", default=[t.name for t in TARGETS], choices=[t.name for t in TARGETS])
    parser.add_argument(
        "--networks", nargs="+", default=[RESNET20, *OF_TORCHVISION], choices=[RESNET20, *OF_TORCHVISION]
    )
    parser.add_argument("--policies", nargs="+", default=POLICIES)
    parser.add_argument("--out", type=Path, default=RESULTS / "targets/cpu.json")
    options = parse_options(parser)
    cases = []
    with tempfile.TemporaryDirectory() as folder:
        for network in networks(options):
            for policy in options.policies:
                for target, runtime in _pairs(options.targets):
                    assert runtime in [r.name for r in RUNTIMES]
                    try:
                        case = measure(network, policy, target, runtime, Path(folder))
                    except (ImportError, ValueError) as error:
                        case = {
                            "network": network.name,
                            "trained": network.trained,
                            "policy": policy,
                            "target": target.name,
                        }
                        case |= {"runtime": runtime, "reason": " ".join(str(error).split())}
                    cases.append(case)
                    print(" | ".join(_row(case)), flush=True)
                    write_measurement(options.out, {"cases": cases})  # what is there, if somebody stops it


if __name__ == "__main__":
    main()
