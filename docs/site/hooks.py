"""What the site adds to docs/: pages that live elsewhere in the repository, and the notebook with its stored outputs.

MkDocs sees one folder, but READMEs, examples and CONTRIBUTING.md belong where they are. They become pages of the site, and
links to them keep the form that also works in the repository: `../benchmarks/README.md`.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "benchmarks/README.md": "benchmarks.md",
    "examples/README.md": "examples/index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "docs/walkthrough.ipynb": "walkthrough.md",
    **{f"examples/{path.name}": f"examples/{path.stem}.md" for path in sorted((ROOT / "examples").glob("*.py"))},
}
"""File in the repository -> page of the site."""
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)(#[^)\s]*)?(?=\))")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere."""
    for source, page in PAGES.items():
        path = ROOT / source
        if path.suffix == ".ipynb":
            content = _notebook(path, files, config)
        elif path.suffix == ".py":
            content = f"# {path.name}\n\n```python\n{path.read_text(encoding='utf-8')}```\n"
        else:
            content = path.read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links between files of the repository into links between pages; files that are not pages lose their link."""
    source = next((s for s, p in PAGES.items() if p == page.file.src_uri), f"docs/{page.file.src_uri}")

    def site_link(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[1]))
        found = "index.md" if target == "README.md" else PAGES.get(target, target.removeprefix("docs/"))
        return posixpath.relpath(found, posixpath.dirname(page.file.src_uri) or ".") + (match[2] or "")

    text = LINK.sub(site_link, markdown)
    return re.sub(r"\[([^\]]+)\]\((?!\w+:)([^)#]+\.(?:yaml|py|json|toml))\)", _without_page, text)


def _without_page(match: re.Match[str]) -> str:
    """The text of a link to a file that the site does not have."""
    return match[1] if match[1].startswith("`") else f"`{match[1]}`"


def _notebook(path: Path, files: Files, config: MkDocsConfig) -> str:
    """A notebook as Markdown: text, code, and what was printed and drawn when it was last run."""
    parts = []
    for number, cell in enumerate(json.loads(path.read_text(encoding="utf-8"))["cells"]):
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        parts.append(f"```python\n{source}\n```")
        printed = ""
        for output in cell["outputs"]:
            data = output.get("data", {})
            printed += "".join(output.get("text", [])) or (
                "" if "image/png" in data else "".join(data.get("text/plain", []))
            )
            if "image/png" in data:
                parts += _text(printed)
                printed, picture = "", f"pictures/walkthrough_{number}.png"
                files.append(File.generated(config, picture, content=base64.b64decode("".join(data["image/png"]))))
                parts.append(f"![what the cell draws]({picture})")
        parts += _text(printed)
    return "\n\n".join(parts) + "\n"


def _text(printed: str) -> list[str]:
    """What was printed, as a block."""
    return [f"```text\n{printed.rstrip()}\n```"] if printed else []
