"""`report.md`, made from a `Results` alone, so that a results file is enough to make it again."""

import json
import re
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from qat.files import write_atomically
from qat.report.judgement.speed import speed_sentences
from qat.report.pages.html import html
from qat.report.pictures import plots
from qat.report.results.schema import Outcome, Results, VerificationResult
from qat.report.text import tables
from qat.report.text.allocation_tables import cost_table, harm_words, layer_table, other_run_sentence, point_table
from qat.report.text.pruning_tables import files_table, pruning_sentence, zeros_table
from qat.report.text_of_numbers import format_count

SIGNS: dict[Outcome, str] = {
    "qat_won": "✅",
    "no_difference": "➖",
    "qat_lost": "❌",
    "undecided": "❔",
    "not_verified": "⛔",
    "verified": "✅",
    "float_untrained": "⚠️",
    "diverged": "⚠️",
}


def write_report(results: Results, folder: str | Path) -> Path:
    """Write `report.md` with its pictures, and `report.html`, into `folder`.

    Returns:
        The path of `report.md`.

    Raises:
        OSError: a file cannot be written.
    """
    folder = Path(folder)
    pictures = plots.draw_all(results)
    for name, png in pictures.items():
        write_atomically(folder / name, png)
    write_atomically(folder / "report.html", html(results))
    return write_atomically(folder / "report.md", markdown(results, pictures))


def markdown(results: Results, pictures: Iterable[str] = ()) -> str:
    """The report as Markdown.

    Args:
        pictures: file names of the pictures that exist beside the report.
    """
    available = set(pictures)
    sections = [
        f"# {_escape(results.recipe)}",
        f"> {SIGNS[results.verdict.outcome]} **{_without_tags(results.verdict.text)}**",
        *comparison(results, available),
        *_verification(results),
        *_quantized(results),
        *_pruning(results),
        *_allocation(results),
        *_training(results, available),
        *_oscillations(results, available),
        *_facts(results),
        *_reproduce(results),
    ]
    return "\n\n".join(sections) + "\n"


def comparison(results: Results, available: Collection[str] = ()) -> list[str]:
    """The section that compares all models, as Markdown paragraphs."""
    metric, data = results.metric, results.data
    sections = ["## Comparison", _table(tables.comparison_table(results.rows, data.test, full=True, metric=metric))]
    notes = [f"- {_escape(other_run_sentence(other, metric))}" for other in results.other_runs]
    notes += [f"- {_escape(row.name)}: {_escape(row.note)}" for row in results.rows if row.note]
    slow = speed_sentences(results.rows, results.environment, results.verification)
    notes += [f"- {_escape(sentence)}" for sentence in slow]
    if any(row.size_kind == "stored" for row in results.rows):
        notes.append(f"- {tables.STORED_NOTE}")
    notes.append(
        f"- {_escape(metric.heading)} on {data.test:,} test {data.samples}, {tables.error_words(metric)}; {metric.direction}. "
        "Latency in milliseconds per call."
    )
    sections.append("\n".join(notes))
    return sections + _pictures(
        available,
        (plots.ACCURACY, f"{metric.name} of every model"),
        (plots.SIZE, f"{metric.name} against size"),
        (plots.LATENCY, f"{metric.name} against latency"),
    )


def _verification(results: Results) -> list[str]:
    verification = results.verification
    if verification is None:
        return ["## Verification", "No artefact was verified in this run."]
    sections = ["## Verification", _verified(verification, results)]
    sections += [f"`{v.file}`: {_verified(v, results)}" for v in results.target_verifications]
    if results.ptq_verification is not None:
        sections.append(
            f"`{results.ptq_verification.file}`, {results.verdict.ptq}: {_verified(results.ptq_verification, results)}"
        )
    if verification.hashes:
        hashes = ", ".join(f"{name} `{value[:16]}`" for name, value in verification.hashes.items())
        sections.append(f"`{verification.file}`: sha256 (first 16 digits) of {hashes}.")
    if verification.notes:
        sections.append("\n".join(f"- {_escape(note)}" for note in verification.notes))
    return (
        [*sections, _table(tables.verification_table(verification), code_columns=1)] if verification.sites else sections
    )


def _verified(verification: VerificationResult, results: Results) -> str:
    sign = "❌" if not verification.exact else "⚠️" if verification.weak_inputs else "✅"
    found = tables.verification_sentence(verification, classes=results.data.classes is not None)
    return f"{sign} {found}, over {verification.images:,} {results.data.samples}."


def _quantized(results: Results) -> list[str]:
    sections = ["## What is quantized"]
    if results.sites:
        sections.append(_table(tables.site_table(results.sites), code_columns=1))
    in_float = _list("Stays in float:", results.float_edges) or ["Nothing stays in float."]
    mends = "What costs accuracy or speed, and the line of a policy that mends it:"
    return [*sections, *in_float, *_list(mends, results.findings)]


def _list(title: str, items: Sequence[str]) -> list[str]:
    lines = "\n".join(f"- {_escape(item)}" for item in items)
    return [f"{title}\n\n{lines}"] if items else []


def _pruning(results: Results) -> list[str]:
    sections = []
    if results.pruning is not None:
        sections += ["## Zeros", _escape(pruning_sentence(results.pruning))]
        sections.append(_table(zeros_table(results.pruning), code_columns=1))
    return sections + (["## Files", _table(files_table(results.files), code_columns=1)] if results.files else [])


def _allocation(results: Results) -> list[str]:
    found = results.allocation
    if found is None:
        return []
    sections = ["## Bits under a budget", _table(cost_table(found), code_columns=1)]
    sections += [_table(layer_table(found), code_columns=1), _escape(harm_words(found))]
    return [*sections, _table(point_table(found))] if found.points else sections


def _training(results: Results, available: set[str]) -> list[str]:
    training = results.training
    if training is None:
        return []
    duration = "" if training.seconds is None else f" in {training.seconds:,.0f} s"
    best = f"; best validation {results.metric.name} in epoch {training.best_epoch}" if training.best_epoch else ""
    sentence = f"{format_count(training.epochs, 'epoch')}, {format_count(training.steps, 'step')}{duration}{best}."
    return [
        "## Training",
        sentence,
        *_pictures(available, (plots.TRAINING, f"Validation {results.metric.name} per epoch")),
    ]


def _oscillations(results: Results, available: set[str]) -> list[str]:
    oscillations = results.oscillations
    if oscillations is None:
        return []
    sections = ["## Oscillations", f"At the end of the training {tables.oscillation_sentence(oscillations)}."]
    pictures = _pictures(available, (plots.OSCILLATIONS, "Oscillating and frozen weights of each layer"))
    return [*sections, *pictures, _table(tables.oscillation_table(oscillations), code_columns=1)]


def _facts(results: Results) -> list[str]:
    return [
        "## Data and environment",
        "\n".join(f"- {name}: {_escape(fact)}" for name, fact in tables.facts(results)),
    ]


def _reproduce(results: Results) -> list[str]:
    config = json.dumps(results.to_dict()["config"], indent=2, ensure_ascii=False)
    details = f"<details><summary>The whole configuration</summary>\n\n```json\n{config}\n```\n\n</details>"
    seed = "No seed was set." if results.seed is None else f"Seed {results.seed}."
    return ["## Reproduce", f"```sh\n{results.command}\n```", seed, *([details] if results.config else [])]


def _pictures(available: Collection[str], *captions: tuple[str, str]) -> list[str]:
    return [f"![{_escape(caption)}]({name})" for name, caption in captions if name in available]


def _table(table: tables.TextTable, code_columns: int = 0) -> str:
    """A pipe table; the first `code_columns` columns are set as code."""
    rule = ["---" if index < table.text_columns else "---:" for index in range(len(table.header))]
    body = [[_code(c) if i < code_columns else _escape(c) for i, c in enumerate(cells)] for cells in table.cells]
    return "\n".join(_pipe_row(line) for line in [table.header, rule, *body])


def _pipe_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


def _escape(text: str) -> str:
    r"""Escape text so that Markdown shows it as it is: no accidental column, emphasis, tag or line break.

    >>> _escape("per_channel, *really*") == r"per_channel, \*really\*"
    True
    """
    return " ".join(re.sub(r"[\\|*<`]|\b_|_\b", r"\\\g<0>", text).split())


def _without_tags(text: str) -> str:
    """Text whose tags are shown, not obeyed; "p < 0.05" stays as it is."""
    return re.sub(r"<(?=[A-Za-z/!?])", r"\<", text)
