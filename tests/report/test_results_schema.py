"""The results schema: strict both ways, documented field by field, comparable between runs."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest

from qat.report import (
    Data,
    Environment,
    LayerOscillations,
    OscillationResult,
    Results,
    Row,
    SchemaError,
    SiteInfo,
    SiteResult,
    Training,
    Verdict,
    VerificationResult,
    timing_free,
)
from qat.report.results.allocation import AllocationResult, BitsPoint, CostRange, LayerBits, OtherRun, TensorHarm
from qat.report.results.details import Confusion, TensorDetail, Trajectories, Trajectory
from qat.report.results.metric import MetricInfo
from qat.report.results.pruning import FileSize, LayerZeros, PruningResult, RemovedChannels
from tests.paths import DOCS

RECORDS = [Results, Data, Row, Verdict, VerificationResult, SiteResult, SiteInfo, Training, Environment]
RECORDS += [PruningResult, LayerZeros, RemovedChannels, FileSize]
RECORDS += [AllocationResult, CostRange, LayerBits, TensorHarm, BitsPoint, OtherRun]
RECORDS += [OscillationResult, LayerOscillations, MetricInfo, TensorDetail, Trajectories, Trajectory, Confusion]
DOCUMENT = DOCS / "results_schema.md"


def test_round_trip_through_json_is_exact(results: Results) -> None:
    assert Results.from_dict(json.loads(json.dumps(results.to_dict(), allow_nan=False))) == results


def test_to_dict_is_already_what_json_gives_back(results: Results) -> None:
    plain = results.to_dict()
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_document_has_exactly_the_fields_of(record: type) -> None:
    section = re.search(rf"^## {record.__name__}$(.*?)(?=^## |\Z)", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)
    assert section is not None, f"docs/results_schema.md has no section '## {record.__name__}'"
    documented = re.findall(r"^\| `(\w+)` \|", section[1], re.M)
    assert documented == [field.name for field in dataclasses.fields(record)]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_document_marks_exactly_the_optional_fields_of(record: type) -> None:
    section = DOCUMENT.read_text(encoding="utf-8").split(f"\n## {record.__name__}\n")[1].split("\n## ")[0]
    marked = set(re.findall(r"^\| `(\w+)` \| [^|]*\boptional \|", section, re.M))
    missing = dataclasses.MISSING
    optional = {f.name for f in dataclasses.fields(record) if (f.default, f.default_factory) != (missing, missing)}
    assert marked == optional - {"schema_version"}  # has a default in code, but a file without it is refused


def test_nan_and_infinity_become_null(results: Results) -> None:
    assert results.training is not None
    curve = [float("nan"), float("inf"), 0.5]
    diverged = dataclasses.replace(results, training=dataclasses.replace(results.training, val_loss=curve))
    assert diverged.to_dict()["training"]["val_loss"] == [None, None, 0.5]


def test_numpy_numbers_and_paths_are_written_down(results: Results) -> None:
    config = {
        "folder": Path("data") / "cifar",
        "bits": np.int64(4),
        "scales": np.array([0.5, 0.25]),
        "lr": np.float32(0.5),
    }
    plain = dataclasses.replace(results, config=config).to_dict()["config"]
    assert json.loads(json.dumps(plain)) == {
        "folder": str(Path("data/cifar")),
        "bits": 4,
        "scales": [0.5, 0.25],
        "lr": 0.5,
    }


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("rows", 0, "kind"), "qat", r"rows\[0\].kind='qat': expected one of 'float', 'ptq'"),
        (("rows", 1, "top1"), "0.9", r"rows\[1\].top1='0.9': expected float or int, got str"),
        (("rows", 2, "top1"), 90.17, r"top1=90.17 is not a fraction .* write top1=0.9017"),
        (("rows", 2, "top1"), -0.5, r"top1=-0.5 is not a fraction in \[0, 1\]$"),
        (("rows", 0, "size_bytes"), 0, r"Row 'float': size_bytes=0"),
        (("rows", 0, "name"), "PTQ MSE", r"two rows named 'PTQ MSE'"),
        (("data", "test"), True, r"data.test=True: expected int, got bool"),
        (("data", "image_shape"), [3, "32", 32], r"data.image_shape\[1\]='32': expected int"),
        (("verification", "quantized_operators"), ["Conv"], r"quantized_operators=\['Conv'\]: expected Mapping"),
        (("environment", "hostname"), "x", r"Results.environment has no field 'hostname'; its fields are python, "),
    ],
)
def test_a_value_that_does_not_fit_is_named(
    results: Results, path: tuple[str | int, ...], value: object, message: str
) -> None:
    plain = results.to_dict()
    place = plain
    for key in path[:-1]:
        place = place[key]  # type: ignore[index]
    place[path[-1]] = value  # type: ignore[index]
    with pytest.raises(SchemaError, match=message):
        Results.from_dict(plain)


def test_a_missing_field_is_named(results: Results) -> None:
    plain = results.to_dict()
    del plain["data"]["test"]
    with pytest.raises(SchemaError, match=r"Results.data lacks the field 'test'"):
        Results.from_dict(plain)


def test_timing_free_ignores_speed_and_processor_but_nothing_else(results: Results) -> None:
    assert results.training is not None
    times = {"latency_ms_batch1": 99.0, "latency_ms_batch32": 99.0, "seconds": 99.0}
    other_machine = {
        "cpu": "Other",
        "platform": "Other",
        "threads": 64,
        "commit": None,
        "dirty": None,
        "accelerator": None,
    }
    slower = dataclasses.replace(
        results,
        rows=[dataclasses.replace(row, **times) for row in results.rows],
        training=dataclasses.replace(results.training, seconds=9999.0),
        environment=dataclasses.replace(results.environment, **other_machine),
        timings={"qat": 9999.0},
    )
    assert slower.to_dict() != results.to_dict()
    assert timing_free(slower.to_dict()) == timing_free(results.to_dict())

    other = dataclasses.replace(results, rows=[dataclasses.replace(results.rows[0], top1=0.5), *results.rows[1:]])
    assert timing_free(other.to_dict()) != timing_free(results.to_dict())


def test_timing_free_leaves_the_configuration_alone(results: Results) -> None:
    assert timing_free(results.to_dict())["config"] == results.config  # it has a key named "seconds"


def test_verification_is_exact_only_if_something_was_compared() -> None:
    assert VerificationResult(10, 0, 1.0, 0, 1).exact
    assert not VerificationResult(0, 0, 1.0, 0, 0).exact
    assert not VerificationResult(10, 1, 1.0, 1, 1).exact
    assert not VerificationResult(10, 0, 1.0, 0, 2, alarm="its conv is 3 dB").exact
