"""The environment describes this process, and the commit is never that of another repository."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

import pytest

from qat.report import Environment
from qat.report.results.environment import cpu_name, source_state


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    return package


def test_collect_describes_this_process() -> None:
    environment = Environment.collect(threads=3, accelerator="Example GPU")
    assert (environment.python, environment.threads, environment.accelerator) == (
        platform.python_version(),
        3,
        "Example GPU",
    )
    assert environment.versions["numpy"] == metadata.version("numpy")
    assert environment.cpu
    assert Environment.from_dict(environment.to_dict()) == environment


def test_commit_of_a_clean_and_a_changed_checkout(checkout: Path) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    head = git(checkout, "rev-parse", "HEAD")
    assert source_state(checkout) == (head, False)
    (checkout / "forgotten.py").write_text("")
    assert source_state(checkout) == (head, True)


def test_a_package_installed_inside_another_repository_has_no_commit(checkout: Path) -> None:
    (checkout.parent / "main.py").write_text("")
    git(checkout.parent, "add", "main.py")
    git(checkout.parent, "commit", "-qm", "another project; the package in it is not tracked")
    assert source_state(checkout) == (None, None)


def test_a_repository_without_a_commit_has_none(checkout: Path) -> None:
    git(checkout, "add", ".")
    assert source_state(checkout) == (None, None)


def test_without_git_there_is_no_commit(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git(checkout, "add", ".")
    git(checkout, "commit", "-qm", "first")
    monkeypatch.setenv("PATH", "")
    assert source_state(checkout) == (None, None)


def test_cpu_name_reads_the_model_and_falls_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\nmodel name\t: Example CPU: 2 GHz\nmodel name\t: second\n")
    assert cpu_name(cpuinfo) == "Example CPU: 2 GHz"
    monkeypatch.setattr(platform, "processor", lambda: "fallback")
    assert cpu_name(tmp_path / "absent") == "fallback"
