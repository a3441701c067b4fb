"""The pages of docs/: what they show runs, what they link exists, and the site has them all."""

from __future__ import annotations

import ast
import doctest
import functools
import importlib.util
import inspect
import json
import pkgutil
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from torch import nn

import qat
from benchmarks import results_picture
from tests.networks import OptionA, build, images
from tests.paths import DOCS, ROOT

PAGES = sorted(DOCS.glob("*.md"))
LINKED = [
    *PAGES,
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "examples/README.md")),
]


def blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


@pytest.mark.parametrize("page", ["index.md", "own_model.md"])
def test_ten_lines_for_ones_own_model_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    scope: dict[str, Any] = {"model": build(OptionA), "example_inputs": images(2), "batches": [images(32)]}
    exec(next(block for block in blocks(page) if "qat.prepare(" in block), scope)
    assert scope["check"].passed


@pytest.mark.parametrize("path", [ROOT / "README.md", *PAGES], ids=lambda path: path.stem)
def test_a_trainer_that_is_shown_ends(path: Path) -> None:
    """Lightning's default is 1,000 epochs."""
    trainers = re.findall(r"^trainer = L\.Trainer\((.*)\)$", path.read_text(), flags=re.MULTILINE)
    assert [trainer for trainer in trainers if "max_epochs=" not in trainer] == []


def test_the_examples_of_targets_convert_what_they_write() -> None:
    for block in blocks("targets.md"):
        prepares, converts = block.find("qat.prepare("), block.find("qat.convert(")
        writes = re.search(r"export_\w+\(", block.split("import", 2)[-1])
        assert prepares < 0 or writes is None or prepares < converts, block


def test_the_example_of_passes_runs() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    scope: dict[str, Any] = {"model": model, "batches": [torch.randn(32, 4)]}
    exec(blocks("post_training.md")[0], scope)
    assert qat.convert(scope["quantized"])(torch.randn(5, 4)).shape == (5, 2)


def test_the_policies_load() -> None:
    scope: dict[str, Any] = {"qat": qat}
    exec(blocks("policies.md")[0], scope)
    assert scope["policy"].rules["head"].weight.group_size == 32
    assert scope["policy"].rules["head"].activation is None


def test_every_pass_has_its_row() -> None:
    named = set(
        re.findall(r"`(\w+)`", "".join(re.findall(r"^\|(.*?)\|", (DOCS / "post_training.md").read_text(), re.M)))
    )
    passes = {
        name for name, value in vars(qat.ptq).items() if isinstance(value, type) and issubclass(value, qat.ptq.Pass)
    }
    assert passes - {"Pass"} == named


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_callbacks_and_recipes_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"qat\.callbacks\.(\w+)\(", text):
        assert hasattr(qat.callbacks, name), name
    for name in re.findall(r"train(?:\.py)? recipe=(\w+)", text):
        assert name == "NAME" or (ROOT / "recipes" / f"{name}.yaml").is_file(), name


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text()):
        target = page.parent / link if link else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(f"{link}#{anchor}")
    assert broken == []


def test_every_page_has_its_place_on_the_site() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    placed = set(re.findall(r"[\w/]+\.md", json.dumps(config["nav"])))
    examples = {f"examples/{path.stem}.md" for path in (ROOT / "examples").glob("*.py")}
    elsewhere = {"walkthrough.md", "benchmarks.md", "contributing.md", "changelog.md", "examples/index.md"} | examples
    assert placed == {path.name for path in PAGES} | elsewhere


def test_the_names_of_the_api_exist() -> None:
    names = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), flags=re.MULTILINE)
    assert set(qat.__all__) - {"Mode", "callbacks", "ptq", "search"} <= {name.removeprefix("qat.") for name in names}
    if importlib.util.find_spec("huggingface_hub") is None:
        names = [name for name in names if not name.startswith("qat.hf")]
    for name in names:
        pkgutil.resolve_name(name)  # imports the modules on its way: no other test has to


def test_the_picture_is_of_the_recorded_runs() -> None:
    results_picture.refresh(check=True)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="needs the extra docs: ./dev docs")
def test_the_site_builds(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "qat.prepare" in (tmp_path / "api" / "index.html").read_text()


def test_the_numbers_on_numerics_are_right() -> None:
    assert doctest.testfile(str(DOCS / "numerics.md"), module_relative=False).attempted >= 5
    assert doctest.testfile(str(DOCS / "numerics.md"), module_relative=False).failed == 0


def test_the_messages_in_troubleshooting_are_those_of_the_program() -> None:
    source = "".join(path.read_text() for path in sorted((ROOT / "qat").rglob("*.py")))
    messages = re.sub(r'"\s*\n\s*f?"', "", source)
    text = (DOCS / "troubleshooting.md").read_text()
    quoted = [q for row in re.findall(r"^\| (.*?) \|", text, flags=re.MULTILINE) for q in re.findall(r"`([^`]+)`", row)]
    quoted += re.findall(r"`([^`]* \.\.\. [^`]*|\.\.\. [^`]*)`", text)
    parts = [part.strip() for message in quoted for part in message.split("...") if len(part.strip()) > 16]
    foreign = {"operator torchvision::nms does not exist", "pip install qat"}  # of other programs
    assert len(parts) > 25
    assert [part for part in parts if part not in messages and part not in foreign] == []


def test_sizes_and_latencies_in_choosing_bits_are_recorded() -> None:
    text = " ".join((DOCS / "choosing_bits.md").read_text().split())
    measured = (ROOT / "benchmarks" / "README.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| .* \| ([\d.]+) \| [\d.–]+ \|$", measured, flags=re.MULTILINE)
    latency = {(network, policy): of_float for network, policy, of_float in rows}
    eight = {network: latency[network, "w8a8"] for network in ("resnet20", "resnet18", "lenet5")}
    assert f"[{eight['resnet20']} of the latency]" in text
    assert f"for ResNet-20, {eight['resnet18']} for ResNet-18, {eight['lenet5']} for LeNet-5" in text
    said = f"ResNet-20: {eight['resnet20']} of float's latency with `w8a8`, {latency['resnet20', 'w2a2']} with `w2a2`"
    assert said in text
    for policy, recipe in (("`w4a8` |", "cifar10_w4a8"), ("`w2a2`, trained |", "cifar10_w2a2")):
        found = json.loads((ROOT / "benchmarks" / "results" / f"{recipe}.json").read_text())["rows"]
        size = {row["name"]: row["size_bytes"] for row in found}
        assert f"| {policy} {size['QAT in ONNX Runtime'] / size['float']:.2f} of the size" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_the_readme_links_every_page(page: Path) -> None:
    assert f"(docs/{page.name}" in (ROOT / "README.md").read_text()


def test_the_hooks_of_the_site_are_in_the_repository() -> None:
    hooks = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["hooks"]
    found = subprocess.run(["git", "check-ignore", *hooks], cwd=ROOT, capture_output=True, text=True, check=False)
    assert [hook for hook in hooks if not (ROOT / hook).is_file()] == []
    assert found.stdout == ""


def shown_commands(path: Path) -> list[list[str]]:
    """The words of every `qat` command in a block of sh; those of `qat train` are Hydra's, which recipes' tests read."""
    lines = (
        "\n".join(re.findall(r"```sh\n(.*?)```", path.read_text(), flags=re.DOTALL)).replace("\\\n", " ").splitlines()
    )
    words = [shlex.split(line, comments=True) for line in lines if line.startswith("qat ")]
    return [found[1:] for found in words if found[1] != "train"]


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_that_are_shown_parse(page: Path) -> None:
    for command, *arguments in shown_commands(page):
        importlib.import_module(f"qat.cli.{command}").parser().parse_args(arguments)


def called(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """The calls of members of qat, with their dotted names."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (name := ast.unparse(node.func)).startswith("qat."):
            yield name, node


@pytest.mark.parametrize("page", LINKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_is_called_exists_and_takes_these_arguments(page: Path) -> None:
    wrong = []
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        if block.startswith(">>>"):
            continue  # a doctest
        for name, call in called(ast.parse(block)):
            if name.startswith("qat.hf.") and importlib.util.find_spec("transformers") is None:
                continue
            function = functools.reduce(getattr, name.split(".")[1:], cast(Any, qat))
            positional = [None for argument in call.args if not isinstance(argument, ast.Constant | ast.Starred)]
            constants = [
                None for argument in call.args if isinstance(argument, ast.Constant) and argument.value is not ...
            ]
            named = {keyword.arg: None for keyword in call.keywords if keyword.arg is not None}
            try:
                inspect.signature(function).bind_partial(*positional, *constants, **named)
            except TypeError as error:
                wrong.append(f"{ast.unparse(call)}: {error}")
    assert wrong == []
