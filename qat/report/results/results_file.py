"""Results files: written atomically, read strictly."""

import json
from pathlib import Path

from qat.files import write_atomically
from qat.report.results.json_records import SchemaError
from qat.report.results.schema import SCHEMA_VERSION, Results


def write_results(results: Results, path: str | Path) -> Path:
    """Write `results` as indented JSON; a reader never sees a partial file.

    Returns:
        `path`.

    Raises:
        OSError: the file cannot be written.
    """
    text = json.dumps(results.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    return write_atomically(path, text + "\n")


def read_results(path: str | Path) -> Results:
    """Read a results file.

    Raises:
        SchemaError: the file is not complete JSON, has another schema version, or a field does not fit the schema; the
            message says what to do.
        OSError: the file cannot be read.
    """
    path = Path(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{path} is not text: give the folder of a run that has ended, or its results.json."
        ) from error
    except (ValueError, RecursionError) as error:  # not JSON
        raise SchemaError(
            f"{path} is not complete JSON ({error}): it was cut off or edited. "
            "write_results never leaves a partial file; copy it again or rerun its command."
        ) from error
    if not isinstance(data, dict) or "schema_version" not in data:
        raise SchemaError(f"{path} has no schema_version: it is not a results file of qat")
    if (version := data["schema_version"]) != SCHEMA_VERSION:
        raise SchemaError(
            f"{path} has schema_version={version!r}, this qat reads {SCHEMA_VERSION}: "
            f"use the qat that wrote it ({_writing_version(data)}) or rerun its command with this one."
        )
    try:
        return Results.from_dict(data)
    except (SchemaError, OverflowError) as error:
        raise SchemaError(f"{path}: {error}. See docs/results_schema.md") from error


def _writing_version(data: dict[str, object]) -> str:
    match data:
        case {"environment": {"versions": {"qat": str(version)}}}:
            return f"qat {version}"
    return "its version is in environment.versions"
