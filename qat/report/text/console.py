"""The report in the terminal: the quantized sites before a run, the comparison after it. Plain text in files and pipes."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TextIO

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from qat.report.judgement.speed import speed_sentences
from qat.report.results.schema import Outcome, Results, SiteInfo, VerificationResult
from qat.report.text import tables
from qat.report.text.allocation_tables import other_run_sentence
from qat.report.text.pruning_tables import pruning_sentence
from qat.report.text_of_numbers import format_count

LOG_WIDTH = 110
STYLES: dict[Outcome, str] = {
    "qat_won": "bold green",
    "no_difference": "bold yellow",
    "qat_lost": "bold white on red",
    "undecided": "yellow",
    "not_verified": "bold white on red",
    "verified": "bold green",
    "float_untrained": "bold white on red",
    "diverged": "bold white on red",
}


def make_console(file: TextIO | None = None) -> Console:
    """Make a console as wide as the terminal, or 110 columns of plain text if the output is a file or a pipe."""
    console = Console(file=file, highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def print_sites(
    sites: Sequence[SiteInfo], float_edges: Sequence[str], facts: Sequence[str] = (), console: Console | None = None
) -> None:
    """Print which sites are quantized, to which formats, sentences about the whole, and which edges stay in float."""
    console = console or make_console()
    console.print(_rich_table(tables.site_table(sites), f"What is quantized: {format_count(len(sites), 'site')}"))
    console.print()
    for fact in facts:
        console.print(Text(f"{fact[:1].upper()}{fact[1:].rstrip('.')}."))
    if not float_edges:
        console.print(Text("Nothing stays in float.", "green"))
        return
    console.print(Text(f"Stays in float ({len(float_edges)}):", "yellow"))
    for edge in float_edges:
        console.print(Text(f"  {edge}"))


def print_report(results: Results, console: Console | None = None, where: Path | None = None) -> None:
    """Print oscillations, comparison, verification and, because the last line is the one people read, the verdict.

    Args:
        where: the folder of the report, to be named.
    """
    console = console or make_console()
    data = results.data
    title = f"{results.recipe}: {data.label}, {data.test:,} test {data.samples}"
    if results.oscillations is not None:
        table = _rich_table(tables.oscillation_table(results.oscillations), "Oscillations at the end of the training")
        console.print(table, Text(tables.oscillation_sentence(results.oscillations)), "", sep="\n")
    compared = {results.verdict.qat, results.verdict.ptq}
    comparison = tables.comparison_table(results.rows, data.test, metric=results.metric)
    console.print(_rich_table(comparison, title, bold=compared))
    console.print()
    console.print(Text(f"{results.metric.heading}: {tables.error_words(results.metric)}.", "dim"))
    if any(row.size_kind == "stored" for row in results.rows):
        console.print(Text(tables.STORED_NOTE, "dim"))
    if results.pruning is not None:
        console.print(Text(pruning_sentence(results.pruning), "" if results.pruning.proven else "bold red"))
    for other in results.other_runs:
        console.print(Text(other_run_sentence(other, results.metric), "bold"))
    for row in results.rows:
        if row.note:
            console.print(Text(f"{row.name}: {row.note}", "dim"))
    for sentence in speed_sentences(results.rows, results.environment, results.verification):
        console.print(Text(sentence, "yellow"))
    if results.verification is not None:
        _print_verification("Verification", results.verification, console, data.classes is not None)
    for of_target in results.target_verifications:
        _print_verification(of_target.file, of_target, console, data.classes is not None)
    if results.ptq_verification is not None:
        title = f"{results.ptq_verification.file}, {results.verdict.ptq}"
        _print_verification(title, results.ptq_verification, console, data.classes is not None)
    if where is not None:
        console.print(Text(f"Report: {where / 'report.html'}"), soft_wrap=True)
    console.print()
    console.print(Text(results.verdict.text, STYLES[results.verdict.outcome]))


def _print_verification(title: str, verification: VerificationResult, console: Console, classes: bool) -> None:
    style = "bold red" if not verification.exact else "yellow" if verification.weak_inputs else "green"
    console.print(Text(f"{title}: {tables.verification_sentence(verification, classes)}", style))
    if not verification.exact or verification.weak_inputs:
        for note in verification.notes:
            console.print(Text(note, style))


def _rich_table(table: tables.TextTable, title: str, bold: Collection[str | None] = ()) -> Table:
    rendered = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, show_edge=False)
    for index, name in enumerate(table.header):
        is_text = index < table.text_columns
        rendered.add_column(name, justify="left" if is_text else "right", no_wrap=not is_text, overflow="fold")
    for cells in table.cells:
        rendered.add_row(*map(Text, cells), style="bold" if cells[0] in bold else None)
    return rendered
