"""Write the tables and the picture of README.md, benchmarks/README.md and docs/ from benchmarks/results/; none is made by hand.

python -m benchmarks.tables            # after copying a run's results.json to benchmarks/results/<recipe>.json
python -m benchmarks.tables --check    # fails if a table is out of date
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from benchmarks import (
    float_control,
    large_model,
    network_tables,
    number_formats,
    program_tables,
    reconstruction,
    reduce_range,
    reproduce,
    results_picture,
    run_tables,
    scale,
    smaller,
    start_up,
    targets,
)
from benchmarks.coverage import table as coverage_table
from benchmarks.measurement_file import RESULTS
from benchmarks.menu import LADDER, POLICIES, ROWS
from benchmarks.pages import ROOT, fill, write_page
from benchmarks.program_tables import read_measurement
from qat.report import Results, read_results


def tables_of_programs(results: Path) -> dict[str, str]:
    """The tables of the other programs, each under the name of its markers in benchmarks/README.md."""
    tables = {}
    for device in ("cpu", "cuda"):
        file = f"{device}.json"
        tables[f"step time, {device}"] = program_tables.step_time_table(
            read_measurement(results / "step_time" / file), device
        )
        tables[f"operation, {device}"] = program_tables.operation_table(read_measurement(results / "operation" / file))
        tables[f"profile, {device}"] = program_tables.profile_table(read_measurement(results / "profile" / file))
        pipeline = read_measurement(results / "pipeline" / file)
        tables[f"pipeline, {device}"] = program_tables.candidate_table(pipeline, "a float step")
    tables["peers"] = program_tables.peer_table(read_measurement(results / "peers/cpu.json"))
    tables["peers, cuda"] = program_tables.peer_table(read_measurement(results / "peers/cuda.json"))
    artefact = read_measurement(results / "artefact_time/cpu.json")
    tables["artefact"] = program_tables.candidate_table(artefact, "the float export")
    tables["oscillation"] = program_tables.oscillation_table(read_measurement(results / "oscillation/cpu.json"))
    tables["scale"] = scale.table(read_measurement(results / "scale/cpu.json"))
    tables["start-up"] = start_up.table(read_measurement(results / "start_up/cpu.json"))
    tables["large model"] = large_model.table(read_measurement(results / "large_model/cpu.json"))
    before, now = (read_measurement(results / f"reconstruction/{name}.json") for name in ("before", "cpu"))
    tables["reconstruction"] = reconstruction.table(before, now)
    tables["latency"] = program_tables.latency_table(read_measurement(results / "latency/cpu.json"))
    return tables


def policy_table(results: Path) -> str:
    """The policies that leave float between layers, beside w8a8."""
    runs = {"w8a8": read_results(results / "digits_w8a8.json")}
    runs |= {name: read_results(results / f"policies/digits_{name}.json") for name in ("w4", "w8_dynamic")}
    return run_tables.policy_table(runs)


def menu_table(results: Path) -> str:
    """The accuracies of every quantizer and of post-training quantization."""
    measurements = [
        m for path in sorted((results / "menu").glob("*.json")) if (m := read_measurement(path)) is not None
    ]
    order = {name: i for i, name in enumerate([*LADDER, *ROWS])}
    return program_tables.menu_table(sorted(measurements, key=lambda m: order[m["row"]]), POLICIES)


def write_recipe_comments(runs: list[Results], check: bool) -> None:
    """Write the lines `# expected:` and `# takes:` of every recipe that has a recorded run."""
    for recipe in sorted({run.recipe for run in runs}):
        expected, takes = run_tables.recipe_comments([run for run in runs if run.recipe == recipe])
        path = ROOT / "recipes" / f"{recipe}.yaml"
        text = re.sub(r"^# expected:.*$", expected, path.read_text(), flags=re.MULTILINE)
        write_page(path, re.sub(r"^# takes:.*$", takes, text, flags=re.MULTILINE), check)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check: bool = parser.parse_args().check
    runs = run_tables.read_runs(RESULTS)
    write_recipe_comments(runs, check)
    first_seeds = run_tables.first_seeds(runs)
    summary = run_tables.summary(first_seeds)
    for page in ("README.md", "docs/results.md"):
        fill(ROOT / page, "results", summary, check)
    fill(ROOT / "benchmarks/README.md", "results", f"{summary}\n\n{run_tables.details(first_seeds)}", check)
    results_picture.refresh(check)
    speed = program_tables.speed_table(read_measurement(RESULTS / "peers/cpu.json"))
    fill(ROOT / "docs/results.md", "speed", speed, check)
    fill(ROOT / "docs/results.md", "float control", float_control.table(RESULTS / "float_control"), check)
    fill(ROOT / "docs/integer_arithmetic.md", "policies", policy_table(RESULTS), check)
    fill(ROOT / "docs/quantizers.md", "menu", menu_table(RESULTS), check)
    fill(ROOT / "docs/results.md", "reproduction", reproduce.page(RESULTS / "menu"), check)
    coverage = coverage_table.page(read_measurement(RESULTS / "coverage/cpu.json"))
    fill(ROOT / "docs/models.md", "coverage", coverage, check)
    tables = tables_of_programs(RESULTS)
    for marker, text in tables.items():
        fill(ROOT / "benchmarks/README.md", marker, text, check)
    of_targets = {"targets": "cpu", "mobile targets": "mobile", "larger mobile targets": "mobile_larger"}
    for marker, name in of_targets.items():
        fill(ROOT / "docs/targets.md", marker, targets.table(read_measurement(RESULTS / f"targets/{name}.json")), check)
    seven_bits = reduce_range.table(read_measurement(RESULTS / "reduce_range/cpu.json"))
    fill(ROOT / "docs/targets.md", "7 bits", seven_bits, check)
    fill(ROOT / "docs/mixed_precision.md", "mixed", smaller.mixed_table(RESULTS), check)
    untrained = read_measurement(RESULTS / "mixed_precision/cifar10_without_training.json")
    without_training = smaller.without_training_table(untrained)
    fill(ROOT / "docs/mixed_precision.md", "mixed without training", without_training, check)
    fill(ROOT / "docs/pruning.md", "pruning", smaller.pruning_table(RESULTS), check)
    fill(ROOT / "docs/oscillations.md", "oscillation", tables["oscillation"], check)
    language = read_measurement(RESULTS / "language_model/cpu.json")
    fill(ROOT / "docs/formats.md", "language model", program_tables.language_model_table(language), check)
    formats = number_formats.table(read_measurement(RESULTS / "number_formats/cpu.json"))
    fill(ROOT / "docs/formats.md", "number formats", formats, check)
    transformers = read_measurement(RESULTS / "transformer_networks/cpu.json")
    for marker, text in (
        ("transformers", network_tables.transformer_table(transformers)),
        ("SmoothQuant", network_tables.smooth_quant_table(transformers)),
    ):
        fill(ROOT / "docs/transformers.md", marker, text, check)
    real = read_measurement(RESULTS / "efficientnet_lite/cpu.json")
    fill(ROOT / "docs/models.md", "EfficientNet-Lite0", network_tables.efficientnet_table(real), check)


if __name__ == "__main__":
    main()
