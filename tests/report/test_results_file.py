"""Files are never partial, and the error for an unreadable file says why."""

import json
import os
from pathlib import Path

import pytest

from qat.files import write_atomically
from qat.report import Results, SchemaError, read_results, write_results


def test_results_come_back_as_they_were(results: Results, tmp_path: Path) -> None:
    path = write_results(results, tmp_path / "new" / "folder" / "results.json")
    assert read_results(path) == results


@pytest.mark.parametrize("content", ["ü × 0", b"\x00\xff"], ids=["text", "bytes"])
def test_write_atomically_replaces(content: str | bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("a much longer old content")
    assert write_atomically(path, content) == path
    assert path.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "results.json"
    path.write_text("old")
    seen: list[str] = []

    def fail(*_: object) -> None:
        seen.extend(sorted(file.name for file in tmp_path.iterdir()))
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail) if step == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert len(seen) == 2, "the new content was not in a second file of the same folder when the step ran"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_cut_off_file_says_so(results: Results, tmp_path: Path) -> None:
    path = write_results(results, tmp_path / "results.json")
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(SchemaError, match=r"results.json is not complete JSON \(.*line.*\): it was cut off or edited"):
        read_results(path)


@pytest.mark.parametrize("content", ["[1, 2]", '{"rows": []}'])
def test_a_foreign_file_says_so(content: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(SchemaError, match="has no schema_version: it is not a results file of qat"):
        read_results(path)


@pytest.mark.parametrize(
    ("environment", "writer"),
    [({"versions": {"qat": "9.1"}}, "qat 9.1"), ({}, "its version is in environment.versions")],
)
def test_an_unknown_version_names_the_writer(environment: dict[str, object], writer: str, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"schema_version": 99, "environment": environment}))
    with pytest.raises(
        SchemaError, match=rf"schema_version=99, this qat reads 1: use the qat that wrote it \({writer}\)"
    ):
        read_results(path)


def test_a_wrong_value_names_the_file_the_field_and_the_document(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results.to_dict() | {"seed": "one"}))
    with pytest.raises(SchemaError, match=r"results.json: Results.seed='one': expected int.*docs/results_schema.md"):
        read_results(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_none_of_a_results_file(results: Results, number: str, tmp_path: Path) -> None:
    path = write_results(results, tmp_path / "results.json")
    path.write_text(path.read_text().replace('"latency_ms_batch1": 2.41', f'"latency_ms_batch1": {number}'))
    with pytest.raises(SchemaError, match=r"rows\[0\].latency_ms_batch1=(nan|inf): expected a finite number, or null"):
        read_results(path)
