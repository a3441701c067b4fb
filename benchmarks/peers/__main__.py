"""A training step of ResNet-20 in other libraries: time and peak memory over the float network's, eager and compiled.

Every library has its own environment below `--folder`, about 5 GB each, which pip makes if it is missing. The float network
takes turns with the prepared one in the same process. If a library cannot be installed or fails, its error is recorded. About
2 minutes per library to install and 5 to measure, most of it compiling; `--timeout` stops a library that hangs.

python -m benchmarks.peers --threads 2
python -m benchmarks.peers --device cuda
python -m benchmarks.peers --names brevitas nncf --modes eager --rounds 3 --batch 16 --out /tmp/peers.json
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.command_line import argument_parser, parse_options
from benchmarks.measurement_file import RESULTS, write_measurement
from benchmarks.peers import NAMES
from benchmarks.peers.peer import load_peer

ROOT = Path(__file__).parents[2]


class PeerError(Exception):
    """A library cannot be installed or does not run; the message is that of pip or of the library."""


def environment(name: str, folder: Path) -> Path:
    """The Python of a library's environment, which is made if it is missing; this program's if there is nothing to install."""
    packages = load_peer(name).PACKAGES
    if not packages:
        return Path(sys.executable)
    path = folder / name
    python, marker = path / "bin/python", path / "installed"
    requirements = " ".join(packages)
    if not marker.is_file() or marker.read_text() != requirements:
        print(f"{name}: installing {requirements} into {path} ...", flush=True)
        _run([sys.executable, "-m", "venv", "--without-pip", str(path)])
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", "--no-cache-dir", *packages])
        marker.write_text(requirements)
    return python


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """The measurement of one library, or the error that prevented it."""
    try:
        python = environment(name, options.folder)
    except PeerError as error:
        print(f"{name}: {error}", flush=True)
        return {"settings": load_peer(name).SETTINGS, "error": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        return run_worker(python, name, Path(folder) / "measurement.json", options)


def run_worker(python: Path, name: str, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the worker. If it crashes or is stopped, the modes that it has finished are kept."""
    arguments = {key: getattr(options, key) for key in ("batch", "rounds", "threads", "device")} | {"out": out}
    flags = [f"--{key}={value}" for key, value in arguments.items()]
    command = [str(python), "-m", "benchmarks.peers.worker", name, *flags, "--modes", *options.modes]
    try:
        _run(command, options.timeout)
    except PeerError as error:
        print(f"{name}: {error}", flush=True)
        if not out.is_file():
            return {"settings": load_peer(name).SETTINGS, "error": str(error)}
        missing = {mode: {"error": str(error)} for mode in options.modes}
        return missing | json.loads(out.read_text())
    measurement: dict[str, Any] = json.loads(out.read_text())
    return measurement


def _run(command: list[str], timeout: float | None = None) -> None:
    """Run a command from the root of the repository; its standard output is shown."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        subprocess.run(command, cwd=ROOT, env=variables, timeout=timeout, check=True, text=True, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        raise PeerError(f"stopped after {timeout:.0f} seconds") from None
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
        raise PeerError((lines or [f"exit code {error.returncode}"])[-1][:300]) from None


def main() -> None:
    parser = argument_parser(__doc__, with_device=True)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one library")
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/qat/peers"), help="folder of the environments")
    parser.add_argument("--remove", action="store_true", help="delete each environment after use")
    parser.add_argument("--out", type=Path, help="default: results/peers/<device>.json")
    options = parse_options(parser)
    options.folder = options.folder.expanduser().absolute()
    measurements: dict[str, Any] = {}
    for name in options.names:
        measurements[name] = measure(name, options)
        out = options.out or RESULTS / f"peers/{options.device}.json"
        write_measurement(out, {"peers": measurements}, options.device)
        if options.remove:
            shutil.rmtree(options.folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
