"""`qat latency`: the table of layer times that a budget of milliseconds needs."""

from __future__ import annotations

import argparse

from qat.cli import arguments
from qat.cli.errors import GOOD, UsageError, usage_errors


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = arguments.make_parser(
        "latency",
        "Measure every layer of a model alone, in float and in each format, in ONNX Runtime on this machine, and write the\n"
        "table that budget.latency_table and qat.search.allocate(latency_table=...) read. The formats of a layer take turns.",
        """examples:
  qat latency torchvision:resnet18 --policy w8a8 --output times.yaml
  qat latency my_model.py:make --policy w4a8 --weight-bits 4,8 --batch-size 1 --threads 1 --output times.yaml

Without --data, noise is measured: times depend on sizes, hardly on values.""",
    )
    made.add_argument("model", **arguments.NETWORK_ARGUMENT)
    made.add_argument("--policy", default="w8a8", metavar="P", help="a preset or a .yaml file (%(default)s)")
    made.add_argument(
        "--output", type=arguments.new_file, required=True, metavar="YAML", help="where to write the table"
    )
    made.add_argument("--weight-bits", type=_widths, metavar="B,B", help="widths of weights (2,3,4,6,8)")
    made.add_argument("--activation-bits", type=_widths, default=(), metavar="B,B", help="of inputs (the policy's)")
    made.add_argument(
        "--rounds", type=arguments.positive, default=50, metavar="N", help="runs of each file (%(default)s)"
    )
    arguments.add_model_arguments(made)
    arguments.add_data_arguments(made, samples=None, tests=None)
    arguments.add_output_arguments(made, usual="1")
    made.set_defaults(batch_size=1)
    return made


def run(given: list[str]) -> int:
    """Run the command. Returns the exit status."""
    options = parser().parse_args(given)
    from qat.cli.sources.data import Sizes, load_data
    from qat.cli.sources.model import load_model
    from qat.search import measure_latency
    from qat.search.begin import WIDTHS
    from qat.search.budget import checked_widths
    from qat.transform import load_policy

    with usage_errors():
        load_policy(options.policy)
        checked_widths(options.weight_bits or WIDTHS, options.activation_bits or ())
    arguments.use_threads(options.threads)
    model = load_model(options.model, options.weights, options.architecture)
    if model.path is not None or model.is_prepared:
        raise UsageError(
            f"{options.model} is quantized or a file: give the float network whose layers are to be measured."
        )
    size = options.batch_size
    data = load_data(options.data or "random", model, Sizes(size, 1, size, options.image_size), options.input_shape)
    with usage_errors():
        table = measure_latency(
            model.network,
            options.policy,
            next(iter(data.train)).inputs,
            weight_bits=options.weight_bits or WIDTHS,
            activation_bits=options.activation_bits,
            threads=options.threads or 1,
            rounds=options.rounds,
        )
    path = table.write(options.output)
    if options.json:
        arguments.print_json({"file": str(path), "milliseconds": table.times})
    else:
        formats = sorted({name for times in table.times.values() for name in times})
        rows = [
            (layer, *(f"{times[f]:.4g}" if f in times else "" for f in formats)) for layer, times in table.times.items()
        ]
        print(arguments.text_table(("layer, ms", *formats), rows))
        print(f"written to {path}")
    return GOOD


def _widths(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between them, for argparse."""
    widths = text.split(",")
    if not all(width.strip().isdecimal() and len(width) < 9 for width in widths):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of widths, such as 4,8")
    return tuple(map(int, widths))
