"""`qat quantize`: from a model to a verified file and its report."""

from __future__ import annotations

import argparse
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.cli import arguments
from qat.cli.errors import FAILED, GOOD, UsageError, usage_errors
from qat.cli.quantize_onnx import check, quantize_file
from qat.cli.sources.spellings import DATA
from qat.cli.targets import target_of
from qat.export.targets import TARGETS, Target

if TYPE_CHECKING:
    from torch import nn

    from qat.cli.artefact import Written
    from qat.cli.sources.data import Data
    from qat.cli.sources.model import Model
    from qat.transform import Policy

METHODS = {
    "post_training": "ranges from data, biases corrected; with --effort best, learned rounding (AdaRound)",
    "quantization_aware": "trained with its quantizers, towards the float network and, if there are any, the labels",
    "dynamic": "weights, and inputs of layers on the range of each batch; needs no data",
    "weight_only": "weights alone; arithmetic in float; needs no data",
}
LEARNING_RATE = 1e-4
NEEDS_DATA = ("post_training", "quantization_aware")


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    methods = "\n".join(f"  {name:<19} {text}" for name, text in METHODS.items())
    targets = "\n".join(f"  {t.name:<19} {t.summary} ({', '.join(t.suffixes)})" for t in TARGETS)
    made = arguments.make_parser(
        "quantize",
        "Quantize a model, write its file, and verify it code by code. The file has its name only after it has passed; beside\n"
        "it lie results.json, report.html and report.md.",
        f"""methods:
{methods}

targets, by the suffix of --output or by --target:
{targets}

examples:
  qat quantize --model torchvision:resnet18 --weights DEFAULT --output resnet18.onnx --method post_training --data images/
  qat quantize --model my_model.py:make --output m.onnx --method quantization_aware --policy w4a4 --data my_data.py:batches
  qat quantize --model weights.safetensors --architecture timm:mobilenetv3_small_100 --output m.onnx --method weight_only
  qat quantize --model torchvision:resnet18 --output m.onnx --method post_training --data random     (to try the tool)

exit status: 0 verified; 1 the file differs, or it failed; 2 the command line is not possible""",
    )
    made.add_argument("--model", required=True, **arguments.MODEL_ARGUMENT)
    made.add_argument("--output", required=True, type=Path, metavar="OUT", help="the file to write")
    made.add_argument("--method", required=True, choices=METHODS, help="see below")
    policy = made.add_argument(
        "--policy", metavar="P", help="w8a8 (default), w4a8, w4a4, w8, w4, w8_dynamic ..., or a .yaml file"
    )
    policy.completer = arguments.policies  # type: ignore[attr-defined]
    made.add_argument("--target", metavar="T", help="see below").completer = lambda **_: [t.name for t in TARGETS]  # type: ignore[attr-defined]
    arguments.add_model_arguments(made)
    made.add_argument("--effort", choices=("quick", "best"), default="quick", help="of post_training (%(default)s)")
    arguments.add_data_arguments(made)
    training = made.add_argument_group("training (quantization_aware)")
    length = training.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=arguments.positive, metavar="N", help="passes over the training samples (1)")
    length.add_argument("--steps", type=arguments.positive, metavar="N", help="optimizer steps")
    training.add_argument(
        "--learning-rate", type=arguments.positive_float, metavar="LR", help=f"of AdamW ({LEARNING_RATE})"
    )
    made.add_argument(
        "--seed", type=arguments.seed, default=0, metavar="N", help="of random weights and training (%(default)s)"
    )
    arguments.add_seconds_argument(made, default=4.0)
    arguments.add_output_arguments(made)
    return made


def run(given: list[str]) -> int:
    """Run the command. Returns the exit status."""
    options = parser().parse_args(given)
    target = target_of(options.output, options.target)
    with usage_errors():
        target.runtime.check()
    _check(options)
    import torch

    from qat.cli.measure import check_fits
    from qat.cli.methods import policy_for
    from qat.cli.quantize_report import metric_of
    from qat.cli.sources.model import load_model

    if options.policy is not None and not options.model.endswith(".onnx"):
        policy_for(options.method, options.policy, _constraint(target))
    arguments.use_threads(options.threads)
    torch.manual_seed(options.seed)
    command = shlex.join(["qat", "quantize", *given])
    begin = time.perf_counter()
    arguments.say(f"loading {options.model} ...")
    model = load_model(options.model, options.weights, options.architecture, options.threads)
    if model.path is not None:
        check(options, target)
    policy = (
        None
        if model.is_prepared or model.path is not None
        else policy_for(options.method, options.policy, _constraint(target))
    )
    _check_prepared(options, model)
    data = _data(options, model)
    for note in [*model.notes, *data.notes]:
        arguments.say(note)
    check_fits(data, model)
    metric_of(model, data)  # what labels do not fit is found before anything is written
    if model.path is not None:
        return quantize_file(options, target, model, data, command)
    return _quantize(options, target, model, data, policy, command, {"loading": time.perf_counter() - begin})


def _quantize(
    options: argparse.Namespace,
    target: Target,
    model: Model,
    data: Data,
    policy: Policy | None,
    command: str,
    seconds: dict[str, float],
) -> int:
    from qat.cli.artefact import write_verified
    from qat.cli.quantize_report import report

    start = time.perf_counter()
    prepared = _prepared(options, model, data, policy)
    seconds["quantization"] = time.perf_counter() - start
    written = write_verified(prepared, target, options.output, data.test, arguments.say)
    results, folder = report(options, target, model, data, prepared, written, command, {**seconds, **written.seconds})
    return _finish(options, written, results, folder)


def _prepared(options: argparse.Namespace, model: Model, data: Data, policy: Policy | None) -> nn.Module:
    """The model with quantizers that have ranges, by the method."""
    from qat.cli import methods

    network = model.network
    if options.method != "quantization_aware":
        assert policy is not None
        arguments.say(f"quantizing: {options.method}, {policy.name} ...")
        if options.method == "post_training":
            return methods.post_training(network, policy, data, options.effort == "best")
        return methods.calibrated(network, policy, data)
    training = methods.Training(options.steps, options.epochs or 1, options.learning_rate or LEARNING_RATE)
    if policy is not None:
        arguments.say(f"calibrating and training: {policy.name} ...")
        return methods.quantization_aware(network, policy, data, training, arguments.say)
    if options.steps is None and options.epochs is None:
        return network  # trained already
    return methods.trained(network, None, data, training, arguments.say)


def _data(options: argparse.Namespace, model: Model) -> Data:
    """The data of the command line; noise to verify with, if the method needs none and none are given."""
    from qat.cli.sources.data import Sizes, load_data

    few = options.data in (None, "random")  # noise is to try the tool, quickly
    train = options.samples or (16 if few else 50_000 if options.method == "quantization_aware" else 128)
    batch = min(options.batch_size, 8) if few else options.batch_size
    sizes = Sizes(train, options.test_samples or (8 if few else 512), batch, options.image_size)
    data = load_data(options.data or "random", model, sizes, options.input_shape)
    if options.data is None:
        data.notes = ["Without --data, the file is verified with noise"]
    return data


def _constraint(target: Target) -> str | None:
    """The target that policies are to respect; None: the default one, which runs every policy."""
    return None if target is TARGETS[0] else target.name


def _check(options: argparse.Namespace) -> None:
    """What can be seen before anything is loaded."""
    if options.method in NEEDS_DATA and options.data is None and not options.model.endswith(".ckpt"):
        raise UsageError(f"--method {options.method} needs data to calibrate: add --data, one of {', '.join(DATA)}.")
    if options.method != "quantization_aware" and (options.steps or options.epochs or options.learning_rate):
        raise UsageError(
            f"--steps, --epochs and --learning-rate are of --method quantization_aware, not {options.method}: leave them out."
        )
    if options.effort == "best" and options.method != "post_training":
        raise UsageError(f"--effort best is of --method post_training, not {options.method}: leave it out.")
    if Path(options.model).resolve() == options.output.resolve():
        raise UsageError(f"--output {options.output} is the model itself: write another name.")
    if options.output.is_dir():
        raise UsageError(f"--output {options.output} is a folder: write a file in it, {options.output / 'model.onnx'}.")
    folder = next(parent for parent in options.output.absolute().parents if parent.exists())
    if not arguments.can_write_in(folder):
        raise UsageError(
            f"--output {options.output} cannot be written, because {folder} is not a folder that takes files: write another "
            "one."
        )


def _check_prepared(options: argparse.Namespace, model: Model) -> None:
    """A checkpoint has its policy and needs no other method."""
    if not model.is_prepared:
        if options.method in NEEDS_DATA and options.data is None:
            raise UsageError(
                f"--method {options.method} needs data to calibrate: add --data, one of {', '.join(DATA)}."
            )
        return
    if options.method != "quantization_aware" or options.policy is not None:
        raise UsageError(
            f"{options.model} is quantized already, by the policy that it was trained with: write --method quantization_aware "
            "without --policy, which writes its file as it was trained."
        )


def _finish(options: argparse.Namespace, written: Written, results: Any, folder: Path) -> int:
    """Print the result; the last line says whether the file may be used."""
    from qat.report import print_report

    passed = written.verification.passed
    status = GOOD if passed else FAILED
    if options.json:
        content = {"file": str(written.path), "verified": passed, "report": str(folder / "report.html")}
        arguments.print_json({**content, "results": results.to_dict()})
        return status
    print_report(results)
    print(f"report: {folder / 'report.html'}, {folder / 'results.json'}")
    headline = "VERIFIED" if passed else "NOT VERIFIED, do not deploy"
    print(f"{headline}: {written.path}")
    return status
