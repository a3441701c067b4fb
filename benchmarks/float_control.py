"""What the float network gains from as many steps as QAT takes: the control beside a recipe's QAT.

The float network of a recipe is trained with the data, optimizer, schedule, number of steps and teacher that the recipe's QAT
has, only without quantizers, and is tested after the last step. A gain of QAT over its own float network can be that of further
training; this program tells how much. Arguments without dashes are overrides, as for train.py.

python -m benchmarks.float_control recipe=cifar10_w4a4 model.checkpoint=resnet20.safetensors data.root=data/cifar10
python -m benchmarks.float_control ... --weights resnet20_longer.safetensors   # keeps the weights: a teacher, or a start
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from torch import nn

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.markdown_table import markdown_table
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.menu import test_metrics
from benchmarks.program_tables import read_measurement, with_source
from qat.data import ImageData
from qat.experiment import build, float_network
from qat.experiment.configuration import compose
from qat.experiment.console import Progress
from qat.experiment.schema import check_configuration
from qat.models import save_weights
from qat.training.lightning.compilation import compile_in_place, remove_compilation
from qat.training.lightning.quiet import quiet_lightning


def train_in_float(config: DictConfig, data: ImageData, network: nn.Module) -> float:
    """Train `network` in place as the configuration trains its quantized one. Returns the minutes that it took."""
    L.seed_everything(config.seed, workers=True, verbose=False)
    teacher = build.distillation(config, network, data)
    module = build.classifier(network, config, data, distillation=teacher)
    if config.compile:
        compile_in_place(network)
    with tempfile.TemporaryDirectory() as folder, quiet_lightning():
        options = {"enable_checkpointing": False, "limit_val_batches": 0}
        trainer = build.trainer(config, Path(folder), [Progress("float")], False, **options)
        start = time.perf_counter()
        trainer.fit(module, datamodule=build.datamodule(config, data))
        minutes = (time.perf_counter() - start) / 60
    remove_compilation(network)
    return minutes


def table(folder: Path) -> str:
    """A row for each recorded control, and the commands; "not measured" without any."""
    found = [m for path in sorted(folder.glob("*.json")) if (m := read_measurement(path)) is not None]
    if not found:
        return "not measured"
    header = ("settings of", "data", "steps", "float before", "after", "minutes")
    rows = [
        [
            f"`{m['recipe']}`",
            m["data"],
            f"{m['steps']:,}",
            f"{100 * m['before']['top1']:.2f}",
            f"{100 * m['after']['top1']:.2f}",
            f"{m['minutes']:.0f}",
        ]
        for m in found
    ]
    sources = "\n\n".join(with_source("", m).strip() for m in found)
    return f"{markdown_table(header, rows, text_columns=2)}\n\n{sources}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("overrides", nargs="+", help="recipe=NAME and other overrides")
    parser.add_argument("--weights", type=Path, help="write the trained weights to this .safetensors file")
    parser.add_argument("--out", type=Path, help="results file; default: results/float_control/<recipe>.seed<n>.json")
    options = parse_options(parser)
    config = compose(*options.overrides)
    check_configuration(config)
    recipe = next((text.partition("=")[2] for text in options.overrides if text.startswith("recipe=")), "digits_w2a2")

    data: ImageData = build.part(config.data, "data")
    network = float_network.build(config.model, data)
    float_network.check_source(config, data)
    with quiet_lightning():
        float_network.load_or_train(network, config, data, Path())
    before = test_metrics(network, config, data)
    minutes = train_in_float(config, data, network)
    after = test_metrics(network, config, data)
    result: dict[str, Any] = {
        "recipe": recipe,
        "seed": config.seed,
        "data": data.label,
        "test": len(data.test),
        "steps": config.trainer.max_steps,
        "before": before,
        "after": after,
        "minutes": round(minutes, 2),
    }
    if options.weights is not None:
        save_weights(network, options.weights, {"top1": f"{after['top1']:.6f}"})
    write_measurement(options.out or RESULTS / "float_control" / f"{recipe}.seed{config.seed}.json", result)
    print(
        f"{recipe}: float {100 * before['top1']:.2f} %, after {config.trainer.max_steps:,} steps {100 * after['top1']:.2f} %"
    )


if __name__ == "__main__":
    main()
