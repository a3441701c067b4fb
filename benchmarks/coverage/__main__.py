"""How many networks that were written elsewhere end in a right file: each from random weights through every stage, with w8a8.

Every network runs in a process of its own with a limit of time and memory; its result is written at once. What is recorded is
kept with `--resume`, and measured again without it. timm and transformers are optional (`pip install '.[coverage]'`); networks
of packages that are missing are skipped. A network takes about 20 seconds on two idle threads.

python -m benchmarks.coverage
python -m benchmarks.coverage --only torchvision/ "timm/*net*" --resume
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.coverage.judge import faults
from benchmarks.coverage.networks import cases, choose, is_installed
from benchmarks.coverage.worker import measure_in_process
from benchmarks.measurement_file import RESULTS, write_measurement
from qat.report.results.environment import source_state

ROOT = Path(__file__).parents[2]


def results(names: list[str], jobs: int, **limits: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Measure networks, `jobs` at a time; each is returned when it is done."""
    with ThreadPoolExecutor(jobs) as pool:
        running = {pool.submit(measure_in_process, name, **limits): name for name in names}
        for done in as_completed(running):
            yield running[done], {**done.result(), "commit": source_state(ROOT / "qat")[0]}


def optional_packages() -> dict[str, str]:
    """The versions of the packages that networks come from."""
    packages = sorted({case.needs for case in cases().values() if case.needs and is_installed(case)})
    return {package: metadata.version(package) for package in packages}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.set_defaults(threads=2)
    parser.add_argument("--only", nargs="+", default=[], metavar="PATTERN", help="parts of names, or names with *")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--resume", action="store_true", help="keep what is recorded, and measure the rest")
    parser.add_argument("--failed", action="store_true", help="with --resume: measure again what has no right file")
    parser.add_argument("--seconds", type=float, default=240, help="processor time that one network may take")
    parser.add_argument("--memory", type=float, default=8, help="limit for one network, GiB")
    parser.add_argument("--out", type=Path, default=RESULTS / "coverage/cpu.json")
    options = parse_options(parser)
    chosen = choose(options.only)
    absent = {case.needs for case in chosen.values() if not is_installed(case)}
    recorded: dict[str, Any] = {}
    if options.resume and options.out.is_file():
        recorded = json.loads(options.out.read_text())["networks"]
    done = {name for name, record in recorded.items() if not (options.failed and faults(record))}
    names = [name for name, case in chosen.items() if name not in done and is_installed(case)]
    limits = {"seconds": options.seconds, "memory": options.memory, "threads": options.threads}
    print(f"{len(names)} networks; not installed: {', '.join(sorted(absent)) or 'nothing'}", flush=True)
    for name, record in results(names, options.jobs, **limits):
        recorded = {
            n: {**recorded, name: record}[n] for n in cases() if n == name or n in recorded
        }  # always in one order
        write_measurement(
            options.out, {"packages": optional_packages(), "limits": limits, "policy": "w8a8", "networks": recorded}
        )
        found = faults(record)
        print(
            f"{name}: {'; '.join(found) if found else 'right'} ({sum(record.get('seconds', {}).values()):.0f} s)",
            flush=True,
        )


if __name__ == "__main__":
    main()
