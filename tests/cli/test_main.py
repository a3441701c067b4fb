"""The command `qat`."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import qat.cli.main
from qat.cli.commands import COMMANDS
from qat.cli.main import main
from qat.version import version

CLI = Path(qat.cli.main.__file__).parent


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    listed = capsys.readouterr().out
    assert all(f"  {name}" in listed for name in COMMANDS)
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    assert capsys.readouterr().out == listed


def test_help_does_not_wait_for_torch() -> None:
    program = """
import contextlib, os, sys
from qat.cli.commands import COMMANDS
from qat.cli.main import main
for words in [], *([name] for name in COMMANDS):
    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(open(os.devnull, "w")):
        main([*words, "--help"])
print("torch" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("False\n")


def test_the_shell_completes_commands_and_options() -> None:
    pytest.importorskip("argcomplete")
    program = "import sys; sys.argv[0] = 'qat'; from qat.cli.main import main; main()"
    for line, wanted in {
        "qat qu": "quantize",
        "qat quantize --method w": "weight_only",
        "qat benchmark --ch": "--chart",
        "qat train trainer=g": "trainer=gpu",
        "qat train seed=1 --mult": "--multirun",
    }.items():
        asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_STDOUT_FILENAME": "/dev/stdout", "COMP_LINE": line}
        environment = {**os.environ, **asked, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_SUPPRESS_SPACE": "1"}
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
        assert done.stdout == wanted, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"qat {version()}\n"
    assert version()[0].isdigit()


def test_an_unknown_command_names_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["recipe=digits_w4a8"])
    assert "invalid choice: 'recipe=digits_w4a8'" in capsys.readouterr().err


def test_every_command_is_a_module() -> None:
    assert {path.stem for path in CLI.glob("*.py")} - {"__init__", "main"} >= set(COMMANDS)


def test_train_is_the_program_of_train_py(monkeypatch: pytest.MonkeyPatch) -> None:
    import __main__

    seen: dict[str, Any] = {}

    def program() -> None:
        seen.update(
            argv=list(sys.argv), module=__main__.__spec__.name, folder_is_importable=str(Path.cwd()) in sys.path
        )

    monkeypatch.setattr("qat.experiment.main.main", program)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/qat", "train", "recipe=digits_w8a8", "--cfg", "job"])
    before = list(sys.argv), __main__.__spec__, list(sys.path)
    assert main() == 0
    assert seen["argv"] == ["/usr/bin/qat", "recipe=digits_w8a8", "--cfg", "job"]
    assert seen["module"] == "qat.experiment.main"  # what Lightning starts on further devices, with sys.argv[1:]
    assert seen["folder_is_importable"]
    assert (sys.argv, __main__.__spec__, sys.path) == before


def test_train_prints_what_it_found_as_json_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from qat.experiment.answers import answer

    def program() -> None:
        print(f"the log of {sys.argv[1:]}")
        os.write(1, b"what is not written in Python\n")
        answer({"folder": Path("outputs"), "loss": float("nan")})

    monkeypatch.setattr("qat.experiment.main.main", program)
    monkeypatch.setattr(sys, "stdout", sys.__stdout__)  # as in a terminal: pytest has its own
    assert main(["train", "seed=1", "--json"]) == 0
    printed = capfd.readouterr()
    assert json.loads(printed.out) == {"folder": "outputs", "loss": None}
    assert "the log of ['seed=1']" in printed.err
    assert "not written in Python" in printed.err
    assert main(["train", "seed=1"]) == 0
    assert capfd.readouterr().out.startswith("the log of")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(["train", "recpe=x"], marks=pytest.mark.slow),  # both compose a configuration
        pytest.param(["train", "optim.lr=-1"], marks=pytest.mark.slow),
        ["verify"],
        ["nothing"],
    ],
)
def test_with_json_an_error_is_an_object(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main([*words, "--json"])
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["status"] == 2
    assert found["error"] in printed.err
