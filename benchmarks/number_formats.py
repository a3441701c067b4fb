"""FP8, MX and NVFP4 on a network of convolutions: without training, trained, and as a packed folder that was read back.

The network and the training of the recipe digits_w2a2, from the float weights of each seed; weights and inputs of layers have
the format. PTQ has the same calibration images. The accuracy is that of the fake-quantized network and, of trained ones, also
that of the integer model that `qat.save_quantized` wrote and `qat.load_quantized` read.

python -m benchmarks.number_formats
python -m benchmarks.number_formats --formats nvfp4 mxfp4 --seeds 0 --out mine.json
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

import qat
from benchmarks.command_line import argument_parser, parse_options
from benchmarks.markdown_table import markdown_table
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.menu import measure_ptq, test_metrics, train
from benchmarks.program_tables import NOT_MEASURED, with_source
from qat.data import ImageData
from qat.experiment import build, float_network
from qat.experiment.configuration import compose

FORMATS = ("fp8", "fp8_static", "mxfp8", "mxint8", "mxfp6", "nvfp4", "mxfp4")
SEEDS = (0, 1, 2)


def measure(name: str, seed: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Accuracies, as fractions, of one format and seed, and the bytes of the packed tensors and of the float ones."""
    config = compose("recipe=digits_w2a2", f"policy={name}", f"seed={seed}", "ptq=quick", *overrides)
    data: ImageData = build.part(config.data, "data")
    network = float_network.build(config.model, data)
    L.seed_everything(seed, workers=True, verbose=False)
    float_network.load_or_train(network, config, data, Path())
    trained, _ = train(config, data, network)
    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed"
        qat.save_quantized(qat.convert(trained), packed)
        return {
            "format": name,
            "seed": seed,
            "float": test_metrics(network, config, data)["top1"],
            "ptq": measure_ptq("PTQ MSE", config, data, network)["top1"],
            "qat": test_metrics(trained, config, data)["top1"],
            "read_back": test_metrics(qat.load_quantized(packed), config, data)["top1"],
            "bytes": sum(file.stat().st_size for file in packed.glob("*.safetensors")),
            "float_bytes": sum(p.numel() * p.element_size() for p in network.parameters()),
        }


def table(measurement: Mapping[str, Any] | None) -> str:
    """The table of docs/formats.md."""
    if measurement is None:
        return NOT_MEASURED
    rows = []
    for name in dict.fromkeys(case["format"] for case in measurement["cases"]):
        cases = [case for case in measurement["cases"] if case["format"] == name]
        share = statistics.mean(case["bytes"] / case["float_bytes"] for case in cases)
        columns = [_of_seeds([case[key] for case in cases]) for key in ("float", "ptq", "qat", "read_back")]
        rows.append([f"`{name}`", *columns, f"{share:.2f}"])
    header = ("format", "float", "PTQ MSE", "QAT", "QAT, read back", "folder, of float weights")
    return with_source(markdown_table(header, rows, text_columns=1), measurement)


def _of_seeds(fractions: Sequence[float]) -> str:
    spread = f" ± {100 * statistics.stdev(fractions):.2f}" if len(fractions) > 1 else ""
    return f"{100 * statistics.mean(fractions):.2f}{spread}"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.set_defaults(threads=1)
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=FORMATS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument(
        "--overrides", nargs="+", default=(), help="of the recipe's configuration: trainer.max_epochs=10"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "number_formats/cpu.json")
    options = parse_options(parser)
    cases = []
    for seed in options.seeds:
        for name in options.formats:
            cases.append(measure(name, seed, options.overrides))
            print(cases[-1], flush=True)
            write_measurement(options.out, {"cases": cases})


if __name__ == "__main__":
    main()
