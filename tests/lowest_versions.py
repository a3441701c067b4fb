"""The lowest versions that pyproject.toml allows, as pins for pip: `pip install $(python tests/lowest_versions.py)`."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

EXTRAS = ("dev", "tensorboard")


def pins(pyproject: str) -> list[str]:
    """`name==version` for every requirement with a lower bound, in order.

    >>> pins('[project]\\ndependencies = ["torch>=2.11", "lightning>=2.6,<2.7", "types-PyYAML"]')
    ['torch==2.11', 'lightning==2.6', 'types-PyYAML']
    """
    project = tomllib.loads(pyproject)["project"]
    extras = project.get("optional-dependencies", {})
    requirements = [*project["dependencies"], *(r for name in EXTRAS for r in extras.get(name, []))]
    return [
        re.sub(r">=([\w.]+).*", r"==\1", requirement.replace(" ", ""))
        for requirement in requirements
        if not requirement.startswith(project.get("name", "\0"))
    ]


if __name__ == "__main__":
    print("\n".join(pins((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))))
