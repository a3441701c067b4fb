"""`qat inspect`: the doctor."""

from __future__ import annotations

import argparse

from qat.cli import arguments
from qat.cli.errors import GOOD, UsageError, usage_errors
from qat.cli.sources.spellings import DATA

OTHER_LABELS = "the labels are not classes: the loss is the distance to the float network's outputs"


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = arguments.make_parser(
        "inspect",
        "Say what a policy would do to a model before anything is trained: what is quantized and what stays in float, what\n"
        "each tensor costs when it alone is quantized, and what to write in the policy to mend it. A checkpoint of\n"
        "quantization-aware training is listed as it is.",
        """examples:
  qat inspect torchvision:mobilenet_v2 --weights DEFAULT --policy w4a8 --data images/
  qat inspect my_model.py:make --data my_data.py:batches --json --plot sensitivity.png
  qat inspect checkpoints/best.ckpt

A few samples are enough: the network runs once for each tensor that is quantized.""",
    )
    made.add_argument("model", **arguments.NETWORK_ARGUMENT)
    policy = made.add_argument("--policy", default=None, metavar="P", help="a preset or a .yaml file (w8a8)")
    policy.completer = arguments.policies  # type: ignore[attr-defined]
    arguments.add_model_arguments(made)
    arguments.add_data_arguments(made, samples=16, tests=None)
    made.add_argument("--plot", type=arguments.png, metavar="PNG", help="where to draw the sensitivity of each tensor")
    arguments.add_output_arguments(made)
    return made


def run(given: list[str]) -> int:
    """Run the command. Returns the exit status."""
    options = parser().parse_args(given)
    import torch

    from qat.cli.sources.model import load_model
    from qat.transform import load_policy

    if options.policy is not None:
        with usage_errors():
            load_policy(options.policy)
    arguments.use_threads(options.threads)
    torch.manual_seed(0)  # of random weights
    arguments.say(f"loading {options.model} ...")
    model = load_model(options.model, options.weights, options.architecture)
    if model.path is not None:
        raise UsageError(
            f"{options.model} is a file, and inspect takes networks: write qat verify {options.model}, or qat benchmark."
        )
    if model.is_prepared:
        return _prepared(model.network, options)
    from qat.cli import measure, metric
    from qat.cli.sources.data import Sizes, load_data
    from qat.doctor import inspect

    size = min(options.batch_size, options.samples or 16)
    data = load_data(
        options.data or "random", model, Sizes(options.samples or 16, 1, size, options.image_size), options.input_shape
    )
    notes = [*model.notes, *data.notes]
    if options.data is None:
        notes.append(
            f"no --data, so noise: ranges and sensitivity are not those of your data; write one of {', '.join(DATA)}"
        )
    measure.check_fits(data, model)
    for batch in data.train:
        output = measure.run(model.network, batch.inputs)
        if batch.labels is not None and metric.are_classes(batch.labels, output):
            metric.check_classes(data, batch.labels, output)
        elif batch.labels is not None and OTHER_LABELS not in notes:
            notes.append(OTHER_LABELS)
    for note in notes:
        arguments.say(note)
    batches = [
        batch.inputs
        if batch.labels is None or isinstance(batch.inputs, dict)
        else (*_tuple(batch.inputs), batch.labels)
        for batch in data.train
    ]
    arguments.say("quantizing each tensor alone ...")
    with usage_errors():  # of the policy, and of a model that it does not fit
        found = inspect(model.network, options.policy or "w8a8", batches)
    if options.plot is not None:
        found.plot(options.plot)
    if options.json:
        arguments.print_json({"model": options.model, "data": {"name": data.name, "notes": notes}, **found.to_dict()})
    else:
        print(found)
    return GOOD


def _tuple(inputs: object) -> tuple[object, ...]:
    return inputs if isinstance(inputs, tuple) else (inputs,)


def _prepared(network: object, options: argparse.Namespace) -> int:
    """The table of a checkpoint."""
    from dataclasses import asdict

    from qat.doctor import inspect

    if options.policy is not None:
        raise UsageError(f"{options.model} has the policy that it was trained with: leave out --policy.")
    found = inspect(network)  # type: ignore[call-overload]
    if options.json:
        lines = [asdict(line) for line in found.lines]
        arguments.print_json(
            {"model": options.model, "lines": lines, "float_edges": found.float_edges, "notes": found.notes}
        )
    else:
        print(found)
    return GOOD
