"""SIGTERM and SIGINT: a run ends at a step boundary with a checkpoint, and says with which command it goes on."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Self

SIGNALS = (signal.SIGTERM, signal.SIGINT)
START = "the start"
"""The stage in which everything is checked, and nothing is trained."""
PLAIN_VALUE = r"[\w./~+-]+"
"""Values that neither Hydra nor a shell reads in another way."""


class Interrupted(BaseException):
    """A signal ended the program. number: of the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def status(self) -> int:
        """The exit status that a shell gives a program that this signal ended."""
        return 128 + self.number


class SignalHandler:
    """Inside the `with` block, the first signal raises `Interrupted`, at once or, while `waits`, when the step is done.

    A second signal raises at once.
    """

    def __init__(self) -> None:
        self.stage = START
        """What the run is doing, for the message."""
        self.waits = False
        """Whether a callback asks `received` at every step boundary."""
        self.received: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python gives signals to the main thread alone
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def install(self) -> None:
        """Take the signals, also from a library that took them in between."""
        if self._before:
            for number in SIGNALS:
                signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that loads data: whoever started it says what happened
            os._exit(128 + number)
        first, self.received = self.received is None, number
        if not (self.waits and first):
            self.waits = False
            if _in_finalizer(frame):  # Python ignores what that raises: the signal comes again when it is over
                threading.Timer(0.1, os.kill, (self._process, number)).start()
                return
            raise Interrupted(number)
        name = signal.Signals(number).name
        text = f"{name}: the run ends when this step or validation is done; another signal ends it at once.\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, text.encode())  # print is not reentrant


def _in_finalizer(frame: FrameType | None) -> bool:
    """Whether a `__del__` runs."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


def continuing_command(command: Sequence[str], folder: Path) -> str:
    """The command that continues a run: the same overrides with `resume=`, in a new folder if the old one was named.

    A resumed run that has no checkpoint of its own yet is resumed from where it was.

    Args:
        command: the command that started it.
        folder: its folder.

    >>> continuing_command(["qat", "train", "seed=1", "hydra.run.dir=out"], Path("out"))
    'qat train seed=1 hydra.run.dir=out_resumed resume=out'
    """
    kept = [word for word in command if not word.startswith(("resume=", "hydra.run.dir="))]
    if any(word.startswith("hydra.run.dir=") for word in command):
        kept.append(_override("hydra.run.dir", _free_name(folder)))
    before = [word for word in command if word.startswith("resume=")]
    own = any(folder.glob("checkpoints/*.ckpt"))
    return shlex.join([*kept, *(before[-1:] if before and not own else [_override("resume", folder)])])


def command_line(program: str) -> list[str]:
    """The words that started this process, as they can be given to a shell again.

    Args:
        program: as people write it, `python train.py` or `qat train`.
    """
    arguments = sys.argv[1:]
    if "TORCHELASTIC_RUN_ID" in os.environ:
        processes = os.environ.get("LOCAL_WORLD_SIZE", "1")
        return ["torchrun", "--nproc-per-node", processes, sys.argv[0], *arguments]
    first, *others = program.split()
    found, file = shutil.which(first), Path(sys.executable if first.startswith("python") else sys.argv[0])
    if found is None or not Path(found).exists() or not file.exists() or not Path(found).samefile(file):
        first = str(file)
    if others == ["train.py"]:
        others = [sys.argv[0]]
    return [first, *others, *arguments]


def what_is_kept(folder: Path, stage: str) -> str:
    """What an interrupted run leaves, in a sentence."""
    from qat.training.checkpoint.latest import latest_checkpoint, step_of

    try:
        newest = latest_checkpoint(folder)
    except (FileNotFoundError, ValueError):
        float_network = "the float network" if stage in (START, "the float training") else ""
        again = f"{float_network}, calibration and PTQ" if float_network else "calibration and PTQ"
        kept = "" if float_network else " (the float network is kept)"
        return f"There is no checkpoint yet: {again} begin anew{kept}."
    return f"{newest}, of step {step_of(newest):,}, is kept."


def _override(key: str, path: Path) -> str:
    value = str(path)
    if not re.fullmatch(PLAIN_VALUE, value):
        value = "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return f"{key}={value}"


def _free_name(folder: Path) -> Path:
    names = [f"{folder.name}_resumed", *(f"{folder.name}_resumed_{i}" for i in range(2, 1000))]
    return next(path for path in map(folder.with_name, names) if not path.exists())
