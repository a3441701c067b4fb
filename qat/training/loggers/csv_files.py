"""Results beside the metrics.csv of a CSVLogger."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qat.files import write_atomically
from qat.report import Results
from qat.report.text.flat import numbers, plain_tables


def log_to_csv(logger: Any, results: Results, folder: Path) -> None:
    """Write summary.csv, a line for each number, and NAME.csv for each table."""
    tables = {name: (table.columns, table.rows) for name, table in plain_tables(results).items()}
    tables["summary"] = (("name", "value"), [*numbers(results).items(), ("verdict", results.verdict.text)])
    for name, (columns, rows) in tables.items():
        write_atomically(Path(logger.log_dir) / f"{name}.csv", _text(columns, rows))


def _text(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(["" if value is None else value for value in row] for row in rows)
    return buffer.getvalue()
