"""Console and Markdown output compared with golden files; regenerate with `REGOLD=1 pytest tests/report` and read the diff."""

import dataclasses
import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from qat.report import (
    Results,
    Row,
    SchemaError,
    VerificationResult,
    make_console,
    print_report,
    print_sites,
    verdict,
    write_results,
)
from qat.report.__main__ import main
from qat.report.pages.markdown import markdown, write_report
from qat.report.text.tables import agreement_percent, format_size, verification_sentence

GOLDEN = Path(__file__).parent / "golden"


def assert_golden(name: str, text: str) -> None:
    path = GOLDEN / name
    if os.environ.get("REGOLD"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def logged(results: Results) -> str:
    """What a log file gets: lines of at most 110 columns, no colour codes."""
    file = io.StringIO()
    console = make_console(file)
    print_sites(results.sites, results.float_edges, console=console)
    print_report(results, console)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def worse(results: Results) -> Results:
    rows = [
        dataclasses.replace(row, top1=0.85, value=0.85) if row.kind == "qat_onnxruntime" else row
        for row in results.rows
    ]
    return dataclasses.replace(results, rows=rows, verdict=verdict(rows, results.data.test))


def test_console_in_a_log(results: Results) -> None:
    text = logged(results)
    assert_golden("console.txt", text)
    assert max(map(len, text.splitlines())) <= 110
    assert "\x1b" not in text


@pytest.mark.parametrize(("lost", "style"), [(False, "\x1b[1;32mQAT WON"), (True, "\x1b[1;37;41mQAT LOST")])
def test_verdict_is_coloured_in_a_terminal(results: Results, lost: bool, style: str) -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="standard", width=100, no_color=False)
    print_report(worse(results) if lost else results, console)
    assert style in file.getvalue()


def test_markdown(results: Results) -> None:
    assert_golden(
        "report.md", markdown(results, ["accuracy.png", "size.png", "latency.png", "training.png", "oscillations.png"])
    )


def test_a_lost_comparison_is_in_the_first_lines_of_the_report(results: Results) -> None:
    first = "\n".join(markdown(worse(results)).splitlines()[:4])
    assert "❌ **QAT LOST to PTQ MSE by 5.17 points: ship the PTQ model" in first


def test_a_run_without_export_or_training_has_a_report_too(results: Results) -> None:
    bare = dataclasses.replace(
        results, verification=None, training=None, oscillations=None, sites=[], float_edges=[], timings={}, config={}
    )
    text = markdown(bare)
    assert "No artefact was verified in this run." in text
    assert "## Training" not in text
    assert "scillat" not in text
    assert "Verification" not in logged(bare)


def test_markdown_names_no_picture_that_is_not_there(results: Results) -> None:
    assert "![" not in markdown(results)


def test_markdown_cells_cannot_break_the_table(results: Results) -> None:
    odd = dataclasses.replace(results.rows[1], name="PTQ | *odd*\nname_")
    text = markdown(dataclasses.replace(results, rows=[results.rows[0], odd]))
    assert r"| PTQ \| \*odd\* name\_ |" in text
    site = dataclasses.replace(results.sites[0], site="a|b")
    assert r"| `a\|b` |" in markdown(dataclasses.replace(results, sites=[site]))


def test_mismatches_are_reported_with_their_size(results: Results) -> None:
    assert results.verification is not None
    off = dataclasses.replace(results.verification, code_mismatches=12, max_step_difference=1, top1_agreement=0.9999)
    sentence = "12 of 1,234,567 codes differ by at most 1 step, top-1 agreement 99.99 %"
    assert verification_sentence(off).startswith(sentence)
    assert f"❌ {sentence}" in markdown(dataclasses.replace(results, verification=off))


@pytest.mark.parametrize(
    ("operators", "phrase"),
    [
        ({"QLinearConv": 19, "Conv": 0}, ", 19 of 19 convolutions are QLinearConv"),
        ({"QLinearConv": 18, "Conv": 1}, ", 18 of 19 convolutions are QLinearConv"),
        ({"Conv": 3}, ", 0 of 3 convolutions are QLinearConv"),
        ({"QLinearConv": 2, "ConvInteger": 1}, ", 3 of 3 convolutions are QLinearConv or ConvInteger"),
        ({"QLinearMatMul": 1, "Gemm": 1}, ", 1 of 2 matrix products are QLinearMatMul"),
        ({"Add": 3}, ""),
    ],
)
def test_operator_phrase(operators: dict[str, int], phrase: str) -> None:
    sentence = verification_sentence(VerificationResult(1, 0, 1.0, 0, 1, operators))
    assert sentence == f"0 of 1 codes differ, top-1 agreement 100 %{phrase}"


def test_agreement_is_never_rounded_up_to_all() -> None:
    assert agreement_percent(1 - 1e-9) == "99.99 %"


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(1, "1 B"), (999, "999 B"), (1000, "1.00 kB"), (9_996, "10.0 kB"), (99_960, "100 kB"), (999_600, "1.00 MB"),
     (45_000_000, "45.0 MB"), (2_500_000_000, "2.50 GB"), (3_000_000_000_000, "3000 GB")],
)  # fmt: skip
def test_size_has_three_digits(n_bytes: int, text: str) -> None:
    assert format_size(n_bytes) == text


def test_command_line_makes_the_report_from_the_file_alone(
    results: Results, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(write_results(results, tmp_path / "results.json"))])
    again = write_report(results, tmp_path / "again")
    assert {file.name for file in tmp_path.iterdir() if file.is_file()} == {"results.json"} | {
        file.name for file in again.parent.iterdir()
    }
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == again.read_text(encoding="utf-8")
    assert results.verdict.text[:40] in capsys.readouterr().out


def test_command_line_explains_a_bad_file(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(SystemExit, match=r"error: .*No such file"):
        main([str(path)])
    path.write_text("{")
    with pytest.raises(SystemExit, match=r"error: .*not complete JSON"):
        main([str(path)])


def test_schema_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match=r"write top1=0\.9$") as caught:
        Row("PTQ", "ptq", 90.0, size_bytes=1, size_kind="file")
    assert isinstance(caught.value, SchemaError)


def test_tags_in_names_are_text(results: Results) -> None:
    """`results.json` may come from somebody else."""
    tag = "<script>alert(1)</script>"
    verdict = dataclasses.replace(results.verdict, text=f"{tag} p < 0.0001")
    rows = [dataclasses.replace(results.rows[0], name=tag), *results.rows[1:]]
    said = markdown(dataclasses.replace(results, recipe=tag, verdict=verdict, rows=rows), ["accuracy.png"])
    assert said.count("<script>") == said.count(r"\<script>") > 2
    assert "p < 0.0001" in said
