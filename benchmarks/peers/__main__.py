"""A training step of ResNet-20 in other libraries: time and peak memory over the float network's, eager and compiled.

Every library gets an environment of its own below `--folder`, about 5 GB each, made with pip where it is missing. Its
own float network takes turns with it in one process. A library that cannot be installed or fails is recorded with its own
error. About 2 minutes a library to install and 5 to measure, most of it compiling; one that hangs is stopped by `--timeout`.

python -m benchmarks.peers --threads 2
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

import torch

from benchmarks.peers import NAMES
from benchmarks.peers.peer import peer
from benchmarks.record import RESULTS, write

ROOT = Path(__file__).parents[2]


class PeerFailed(Exception):
    """A library cannot be installed or does not run; the message is its own."""


def environment(name: str, folder: Path) -> Path:
    """The Python of a peer's environment, made where it is missing; this program's own where the peer needs nothing."""
    packages = peer(name).PACKAGES
    if not packages:
        return Path(sys.executable)
    place, python, mark = folder / name, folder / name / "bin/python", folder / name / "installed"
    wanted = " ".join(packages)
    if not mark.is_file() or mark.read_text() != wanted:
        print(f"{name}: installing {wanted} into {place} ...", flush=True)
        _run([sys.executable, "-m", "venv", "--without-pip", str(place)])
        pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
        _run([*pip, "install", "--quiet", "--no-cache-dir", *packages])
        mark.write_text(wanted)
    return python


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the worker found, with the error that kept it from finding the rest."""
    try:
        python = environment(name, options.folder)
    except PeerFailed as error:
        print(f"{name}: {error}", flush=True)
        return {"settings": peer(name).SETTINGS, "error": str(error)}
    with tempfile.TemporaryDirectory() as folder:
        return work(python, name, Path(folder) / "found.json", options)


def work(python: Path, name: str, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the worker. One that crashes or is stopped loses the mode it was in, not those before."""
    sizes = {"batch": options.batch, "rounds": options.rounds, "threads": options.threads, "out": out}
    arguments = [f"--{key}={value}" for key, value in sizes.items()]
    try:
        _run(
            [str(python), "-m", "benchmarks.peers.worker", name, *arguments, "--modes", *options.modes], options.timeout
        )
    except PeerFailed as error:
        print(f"{name}: {error}", flush=True)
        if not out.is_file():
            return {"settings": peer(name).SETTINGS, "error": str(error)}
        missing = {mode: {"error": str(error)} for mode in options.modes}
        return missing | json.loads(out.read_text())
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def _run(command: list[str], timeout: float | None = None) -> None:
    """Run from the root of the repository; standard output is passed on."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        subprocess.run(command, cwd=ROOT, env=variables, timeout=timeout, check=True, text=True, stderr=subprocess.PIPE)
    except subprocess.TimeoutExpired:
        raise PeerFailed(f"stopped after {timeout:.0f} seconds") from None
    except subprocess.CalledProcessError as error:
        lines = [line.strip() for line in error.stderr.splitlines() if line.strip()]
        raise PeerFailed((lines or [f"exit code {error.returncode}"])[-1][:300]) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--modes", nargs="+", choices=("eager", "compiled"), default=["eager", "compiled"])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--timeout", type=float, default=1200, help="seconds for one library")
    parser.add_argument("--folder", type=Path, default=Path("~/.cache/qat/peers"), help="of the environments")
    parser.add_argument("--remove", action="store_true", help="delete each environment when it was used")
    parser.add_argument("--out", type=Path, default=RESULTS / "peers/cpu.json")
    options = parser.parse_args()
    options.folder = options.folder.expanduser().absolute()
    torch.set_num_threads(options.threads)
    found: dict[str, Any] = {}
    for name in options.names:
        found[name] = measure(name, options)
        write(options.out, {"peers": found})
        if options.remove:
            shutil.rmtree(options.folder / name, ignore_errors=True)


if __name__ == "__main__":
    main()
