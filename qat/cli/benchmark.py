"""`qat benchmark`: models and files on the same samples, in turns."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qat.cli import arguments
from qat.cli.errors import GOOD, UsageError

if TYPE_CHECKING:
    from qat.cli.chart import Panel
    from qat.cli.measure import Measurement
    from qat.cli.metric import Metric
    from qat.cli.sources.data import Data
    from qat.cli.sources.model import Model


def parser() -> argparse.ArgumentParser:
    """The arguments of the command."""
    made = arguments.make_parser(
        "benchmark",
        "Compare models of any kind: float, checkpoints, files. All see the same samples, and take turns against the clock,\n"
        "so that a busy machine slows all of them alike: trust the ratios. The first model is what the others are\n"
        "compared with.",
        """examples:
  qat benchmark m.onnx
  qat benchmark torchvision:resnet18 m.onnx --weights DEFAULT --data images/ --chart speed.png
  qat benchmark float.onnx w8a8.onnx w4a8.onnx --data cifar10 --json

Files run in their own runtime, others in torch. Without --data, noise is used: there is no accuracy then.""",
    )
    made.add_argument("models", nargs="+", **arguments.MODEL_ARGUMENT)
    arguments.add_model_arguments(made)
    arguments.add_data_arguments(made, samples=None)
    made.add_argument("--metric", metavar="NAME", help="accuracy, mae, mse, or file.py:function of (outputs, labels)")
    arguments.add_seconds_argument(made, default=10.0)
    made.add_argument("--chart", type=arguments.png, metavar="PNG", help="where to draw a bar chart")
    arguments.add_output_arguments(made)
    return made


def run(given: list[str]) -> int:
    """Run the command. Returns the exit status."""
    options = parser().parse_args(given)
    if twice := next((m for m in options.models if options.models.count(m) > 1), None):
        raise UsageError(f"{twice} is given twice: leave one out.")
    import torch

    from qat.cli import measure
    from qat.cli.measure import check_fits
    from qat.cli.metric import check_metric, metric_named
    from qat.cli.sources.data import Sizes, load_data
    from qat.cli.sources.model import load_model

    check_metric(options.metric)
    arguments.use_threads(options.threads)
    torch.manual_seed(0)  # of random weights
    for place, option in enumerate(("weights", "architecture")):
        if getattr(options, option) is not None and not any(_for_weights(options, m)[place] for m in options.models):
            raise UsageError(f"--{option} is for none of these models: leave it out.")
    arguments.say(f"loading {', '.join(options.models)} ...")
    models = [load_model(text, *_for_weights(options, text), threads=options.threads) for text in options.models]
    sizes = Sizes(
        1,
        options.test_samples or (16 if options.data in (None, "random") else 512),
        options.batch_size,
        options.image_size,
    )
    with_example = next((m for m in models if m.example is not None), models[0])
    data = load_data(options.data or "random", with_example, sizes, options.input_shape)
    if options.data is None:
        data.notes = ["no --data: noise, so there is no accuracy"]
    for model in models:
        check_fits(data, model)
    metric = metric_named(options.metric, data, measure.run(models[0].network, next(iter(data.test)).inputs))
    arguments.say(f"measuring on {data.name} ...")
    found = measure.measure(models, data, metric)
    arguments.say(f"timing, about {len(measure.BATCH_SIZES) * options.seconds:.0f} s ...")
    _time(models, found, data, options)
    if options.chart is not None:
        _draw(found, metric, options.chart)
    if options.json:
        arguments.print_json(_record(found, metric, data, options))
    else:
        _print(found, metric, data, options)
    return GOOD


def _for_weights(options: argparse.Namespace, text: str) -> tuple[str | None, str | None]:
    """Weights and architecture, for the models that they are meant for."""
    from qat.cli.sources.model import STATE_SUFFIXES

    is_weights_file = text.endswith(STATE_SUFFIXES)
    of_library = text.partition(":")[0] in ("torchvision", "timm", "hf", "qat")
    return options.weights if of_library else None, options.architecture if is_weights_file else None


def _time(models: list[Model], found: list[Measurement], data: Data, options: argparse.Namespace) -> None:
    from qat.cli import measure

    networks = {model.name: model.network for model in models}
    example = next(iter(data.test)).inputs
    timings = measure.time_models(networks, example, options.seconds, options.threads)
    for measurement in found:
        measurement.latency = timings[measurement.name]
        if missing := [size for size in measure.BATCH_SIZES if size not in measurement.latency]:
            measurement.notes.append(f"takes no batch of {' or '.join(map(str, missing))}")


def _record(found: list[Measurement], metric: Metric | None, data: Data, options: argparse.Namespace) -> dict[str, Any]:
    from qat.report import Environment

    return {
        "data": {
            "name": data.name,
            "samples": data.test.samples,
            "noise": data.noise,
            "notes": data.notes,
        },
        "metric": None if metric is None else {"name": metric.name, "mode": metric.mode},
        "models": [
            {
                "name": m.name,
                "runtime": m.runtime,
                "size_bytes": m.size_bytes,
                "size_kind": m.size_kind,
                "size_of_first": m.size_bytes / found[0].size_bytes,
                "value": m.value,
                "agreement_with_first": m.agreement,
                "sqnr_db_to_first": m.sqnr_db,
                "latency_ms": {str(size): vars(timing) for size, timing in m.latency.items()},
                "latency_of_first": {
                    str(size): timing.median / found[0].latency[size].median
                    for size, timing in m.latency.items()
                    if size in found[0].latency
                },
                "notes": m.notes,
            }
            for m in found
        ],
        "environment": Environment.collect(threads=options.threads).to_dict(),
    }


def _print(found: list[Measurement], metric: Metric | None, data: Data, options: argparse.Namespace) -> None:
    from qat.cli.measure import BATCH_SIZES
    from qat.report.results.environment import cpu_name, usable_cores
    from qat.report.text_of_numbers import format_count, format_size

    header = ["model", "runtime", "size"]
    header += [] if metric is None else [f"{metric.name}{' %' if metric.percent else ''}"]
    header += [
        "agrees %",
        *(f"ms, batch {size}" for size in BATCH_SIZES),
        *(f"of first, {size}" for size in BATCH_SIZES),
    ]
    rows = []
    for m in found:
        cells = [m.name, m.runtime, format_size(m.size_bytes)]
        cells += [] if metric is None else [_value(m.value, metric)]
        cells.append("-" if m.agreement is None else f"{100 * m.agreement:.1f}")
        cells += [_spread(m.latency.get(size)) for size in BATCH_SIZES]
        cells += [_ratio(m, found[0], size) for size in BATCH_SIZES]
        rows.append(tuple(cells))
    print(arguments.text_table(tuple(header), rows, text_columns=2))
    samples = data.test.samples
    print(
        f"\n{format_count(samples, 'sample')} of {data.name}; latency: median [quartiles], in turns, "
        f"{format_count(options.threads or usable_cores(), 'thread')}, {cpu_name()}; agrees: decides as the first model."
    )
    for note in [*data.notes, *(f"{m.name}: {note}" for m in found for note in m.notes)]:
        print(f"- {note}")


def _value(value: float | None, metric: Metric) -> str:
    return "-" if value is None else f"{100 * value:.2f}" if metric.percent else f"{value:.4g}"


def _spread(timing: Any) -> str:
    if timing is None:
        return "-"
    from qat.report.text_of_numbers import format_milliseconds

    return (
        f"{format_milliseconds(timing.median)} [{format_milliseconds(timing.low)}, {format_milliseconds(timing.high)}]"
    )


def _ratio(measurement: Measurement, first: Measurement, size: int) -> str:
    if size not in measurement.latency or size not in first.latency:
        return "-"
    return f"{measurement.latency[size].median / first.latency[size].median:.2f}"


def _draw(found: list[Measurement], metric: Metric | None, path: Path) -> None:
    """Bars: latency at each batch size, size, and the metric or the agreement."""
    from qat.cli.chart import draw_bars
    from qat.cli.measure import BATCH_SIZES

    names = [m.name for m in found]
    panels: list[Panel] = []
    for size in BATCH_SIZES:
        if all(size in m.latency for m in found):
            timings = [m.latency[size] for m in found]
            spread = [[t.median - t.low for t in timings], [t.high - t.median for t in timings]]
            panels.append((f"milliseconds, batch {size}", [t.median for t in timings], spread))
    factor, unit = (1e6, "MB") if max(m.size_bytes for m in found) >= 1e6 else (1e3, "kB")
    panels.append((f"size, {unit}", [m.size_bytes / factor for m in found], None))
    if metric is not None:
        scale = 100 if metric.percent else 1
        panels.append(
            (f"{metric.name}{', %' if metric.percent else ''}", [scale * (m.value or 0) for m in found], None)
        )
    elif len(found) > 1:
        panels.append(("agreement with the first, %", [100 * (m.agreement or 0) for m in found], None))
    draw_bars(path, names, panels)
