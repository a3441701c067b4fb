"""Published results beside ours: writes the tables of docs/results.md from the recorded rows of `benchmarks.menu`.

Networks, data and lengths of training differ, so what is compared is the loss of accuracy against each one's own float network.
A row that loses over `FAR` points more than what was published is flagged. With --checkpoint and --data, rows that are not
recorded yet are measured first (two minutes a cell, by `benchmarks.menu`).

python -m benchmarks.reproduce
python -m benchmarks.reproduce --checkpoint resnet20.safetensors --data data/cifar10
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.markdown_table import markdown_table
from benchmarks.measurement_file import RESULTS
from benchmarks.pages import ROOT, fill
from benchmarks.program_tables import NOT_MEASURED, Measurement, read_measurement
from benchmarks.published import CIFAR, IMAGENET, POST_TRAINING, TRAINED, Published

POLICIES = ("w4a4", "w3a3", "w2a2")
FAR = 1.0
"""Points of accuracy that ours may lose more than the publication before it is flagged."""
HEADER = (
    "method", "bits", "published: network", "float", "quantized", "points lost", "ours: float", "quantized",
    "points lost", "more than published",
)  # fmt: skip


def comparison(published: Sequence[Published], menu: Mapping[str, Measurement]) -> str:
    """One line for each method and width; what loses `FAR` points more than published is in bold."""
    lines = []
    for entry in published:
        for policy, top1 in entry.top1.items():
            lost = entry.float_top1 - top1
            ours = menu.get(entry.row)
            accuracies = [] if ours is None else over_seeds(ours, policy)
            cells = [entry.method, policy.upper(), f"{entry.network} ({entry.source})"]
            cells += [f"{entry.float_top1:.2f}", f"{top1:.2f}", f"{lost:.2f}"]
            lines.append([*cells, *_ours(ours, accuracies, lost)])
    return markdown_table(HEADER, lines, text_columns=3)


def _ours(menu: Measurement | None, accuracies: Sequence[float], published_loss: float) -> list[str]:
    if menu is None or not accuracies:
        return [NOT_MEASURED, "", "", ""]
    float_top1, mean = 100 * menu["float"], statistics.mean(accuracies)
    spread = f" ± {statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
    more = float_top1 - mean - published_loss
    flagged = f"**{more:+.2f}**" if more > FAR else f"{more:+.2f}"
    return [f"{float_top1:.2f}", f"{mean:.2f}{spread} ({len(accuracies)})", f"{float_top1 - mean:.2f}", flagged]


def over_seeds(measurement: Measurement, policy: str) -> list[float]:
    """Top-1 of all seeds, in %."""
    return [100 * cell["top1"] for name, cell in measurement["cells"].items() if name.startswith(f"{policy}, ")]


def order_of_methods(published: Sequence[Published], menu: Mapping[str, Measurement]) -> str:
    """Whether the methods rank as published, width by width: Spearman's rank correlation of accuracies."""
    lines = []
    for policy in POLICIES:
        ours = {e.method: over_seeds(menu[e.row], policy) for e in published if policy in e.top1 and e.row in menu}
        means = {method: statistics.mean(accuracies) for method, accuracies in ours.items() if accuracies}
        theirs = {e.method: e.top1[policy] for e in published if e.method in means}
        if len(means) < 3:
            lines.append([policy.upper(), "", "", NOT_MEASURED])
            continue
        correlation = spearmanr([theirs[method] for method in means], list(means.values()))
        orders = [", ".join(sorted(top1, key=lambda method: -top1[method])) for top1 in (theirs, means)]
        lines.append([policy.upper(), *orders, f"{correlation.statistic:.2f} (p = {correlation.pvalue:.2f})"])
    return markdown_table(("bits", "published order", "our order", "rank correlation"), lines, text_columns=3)


def page(folder: Path) -> str:
    """The tables of docs/results.md. folder: that of the menu's recorded rows."""
    found = [m for path in sorted(folder.glob("*.json")) if (m := read_measurement(path)) is not None]
    menu: dict[str, Measurement] = {m["row"]: m for m in found}
    used = [menu[entry.row] for entry in (*TRAINED, *POST_TRAINING) if entry.row in menu]
    on_cifar = [entry for entry in TRAINED if entry.network == CIFAR]
    on_imagenet = [entry for entry in TRAINED if entry.network == IMAGENET]
    remarks = [f"{e.method} ({e.source}): {e.remark}." for e in TRAINED if e.remark]
    return "\n\n".join(
        [
            "### Same network, same task",
            comparison(on_cifar, menu),
            *remarks,
            "### Other network and data: the order of methods",
            order_of_methods(on_imagenet, menu),
            comparison(on_imagenet, menu),
            "### Post-training quantization",
            order_of_methods(POST_TRAINING, menu),
            comparison(POST_TRAINING, menu),
            _source(used),
        ]
    )


def _source(measurements: Sequence[Measurement]) -> str:
    about: set[str] = {f"{m['data']}, {m['test']:,} test images, {m['steps']} steps of 128" for m in measurements}
    commits: set[str] = {str(cell["commit"])[:7] for m in measurements for cell in m["cells"].values()}
    machines: set[str] = {m["environment"]["cpu"] for m in measurements}
    return (
        f"Ours: ResNet-20, {'; '.join(sorted(about))}; seeds in parentheses; {'; '.join(sorted(machines))}; commits "
        + (f"{', '.join(sorted(commits))}." if commits else f"{NOT_MEASURED}.")
    )


def measure_missing(checkpoint: Path, data: Path, folder: Path) -> None:
    """Let `benchmarks.menu` measure the rows that are compared here and not recorded yet."""
    rows = sorted({entry.row for entry in (*TRAINED, *POST_TRAINING)})
    options: list[Any] = ["--checkpoint", checkpoint, "--data", data, "--out", folder, "--rows", *rows]
    subprocess.run([sys.executable, "-m", "benchmarks.menu", *map(str, options)], check=True)


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="float weights of ResNet-20, .safetensors")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-10")
    parser.add_argument("--out", type=Path, default=RESULTS / "menu", help="folder of the recorded rows")
    options = parse_options(parser)
    if (options.checkpoint is None) != (options.data is None):
        parser.error("--checkpoint and --data go together: without both, the recorded rows are used")
    if options.checkpoint is not None:
        measure_missing(options.checkpoint, options.data, options.out)
    fill(ROOT / "docs/results.md", "reproduction", page(options.out), check=False)
    print(page(options.out))


if __name__ == "__main__":
    main()
