"""The HTML report: one file without network; sorted, coloured and read in a real browser where there is one."""

import dataclasses
import json
import re
import shutil
import subprocess
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from qat.report import Results, read_results
from qat.report.pages.html import first_number, html, run_code
from tests.paths import ROOT

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
VOID = {"meta", "link", "br", "img", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and collects what the tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_needs_no_network(results: Results) -> None:
    text = html(results)
    page = Page(text)
    assert text.startswith("<!DOCTYPE html>")
    links = [a.get("href") or a.get("src") or "" for _, a in page.tags if "href" in a or "src" in a]
    assert all(link.startswith(("#", "data:")) for link in links)
    assert "http" not in re.sub(r'http-equiv="', "", text)
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)
    for section in ("comparison", "verification", "sensitivity", "distributions", "trajectories", "oscillations",
                    "confusion", "training", "run", "environment", "reproduce"):  # fmt: skip
        assert section in ids
    assert results.verdict.text in unescape(text)
    assert all(a.get("aria-label") for tag, a in page.tags if tag == "svg")
    assert results.verification is not None
    shape = "\u00a0×\u00a0".join(map(str, results.verification.sites[0].shape))
    assert f"<td>{shape}</td>" in text  # a narrow column does not break it


def test_the_legend_names_what_is_drawn(results: Results) -> None:
    text = html(results).partition('id="verification"')[0]
    named = re.findall(r'<i class="(\w+)"></i>', text)
    drawn = set(re.findall(r'<circle class="dot (\w+)', text))
    assert named
    assert set(named) == drawn


def test_nothing_in_the_results_becomes_markup(results: Results) -> None:
    rows = [dataclasses.replace(results.rows[0], name="<script>alert(1)</script>"), *results.rows[1:]]
    odd = dataclasses.replace(results, rows=rows, recipe="a & <b>", command="echo '</script>'")
    text = html(odd)
    Page(text)
    assert "<script>alert" not in text
    assert text.count("<script>") == 1


def test_a_bare_run_and_every_recorded_one_have_a_page(results: Results) -> None:
    bare = dataclasses.replace(
        results, verification=None, training=None, oscillations=None, sites=[], float_edges=[], timings={}, config={},
        tensors=[], trajectories=None, confusion=None,
    )  # fmt: skip
    assert "No artefact was verified" in html(bare)
    assert run_code(bare) == ""
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        Page(html(read_results(path)))


def test_cells_sort_by_what_they_say() -> None:
    assert first_number("-1.20") == "-1.20"
    assert first_number("+0.5") == "0.5"
    assert first_number("950 B") == "950"
    assert first_number("0.25×") == "0.25"
    assert first_number("identical") == "identical"


PROBE = """
<script>
window.addEventListener("load", () => {
  const found = {};
  const table = document.querySelector("#comparison table");
  const column = (i) => [...table.tBodies[0].rows].map((row) => row.children[i].dataset.value ?? row.children[i].textContent);
  const heads = [...table.querySelectorAll("th button")];
  heads[1].click(); found.up = column(1).map(Number);
  heads[1].click(); found.down = column(1).map(Number);
  const size = heads.findIndex((head) => head.textContent === "size");
  heads[size].click(); found.sizes = column(size).map(Number);
  const last = heads.findIndex((head) => head.textContent.startsWith("ms"));
  heads[last].click(); found.latency = column(last);
  heads[0].click(); found.names = column(0);
  const luminance = (color) => {
    const parts = color.match(/[\\d.]+/g).slice(0, 3).map((x) => x / 255);
    const linear = parts.map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  };
  const ground = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const color = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(color) && color !== "transparent" && color.startsWith("rgb")) return color;
    }
    return "rgb(255, 255, 255)";
  };
  found.contrast = Math.min(...[...document.querySelectorAll("p, td, th, a, dd, dt, code, figcaption, text")].map((e) => {
    const ink = e.tagName === "text" ? getComputedStyle(e).fill : getComputedStyle(e).color;
    const [low, high] = [luminance(ink), luminance(ground(e))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }));
  found.dark = luminance(getComputedStyle(document.body).backgroundColor) < 0.2;
  found.sideways = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  found.empty = [...document.querySelectorAll("svg")].filter((svg) => !(svg.getBoundingClientRect().height > 20)).length;
  found.pictures = document.querySelectorAll("svg").length;
  found.tall = [...document.querySelectorAll("table.sortable tbody tr")].filter((row) =>
    [...row.cells].every((cell) => cell.textContent.length < 30) && row.getBoundingClientRect().height > 40).length;
  const report = document.createElement("pre");
  report.id = "found";
  report.textContent = JSON.stringify(found);
  document.body.append(report);
});
</script>
"""


@pytest.mark.slow
@pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium: the page is only checked by a parser. apt-get install chromium"
)
@pytest.mark.parametrize("look", ["light", "dark", "phone"])
def test_in_a_browser(look: str, results: Results, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(html(results).replace("</body>", f"{PROBE}</body>"), encoding="utf-8")
    width = 500 if look == "phone" else 1200  # headless Chromium has no narrower window
    preferred = ["--force-dark-mode", "--blink-settings=preferredColorScheme=0"] if look == "dark" else []
    done = subprocess.run(
        [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", *preferred,
         f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", "--virtual-time-budget=3000",
         "--dump-dom", path.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    answer = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    assert answer is not None, "the page's scripts did not run to their end"
    found = json.loads(answer[1])
    assert found["up"] == sorted(found["up"]) == found["down"][::-1]
    assert len(set(found["up"])) > 3
    assert found["sizes"] == sorted(found["sizes"])
    assert found["latency"][0] not in ("", "–")
    assert set(found["latency"][2:]) == {""}, "what was not measured is not at the end"
    assert found["names"] == sorted(found["names"], key=str.lower)
    assert found["contrast"] >= 4.5
    assert found["dark"] == (look == "dark")
    assert found["sideways"] <= 0, "the page scrolls sideways"
    assert found["pictures"] > 8
    assert found["empty"] == 0
    assert found["tall"] == 0, "short cells wrap, whose table scrolls sideways anyway"
