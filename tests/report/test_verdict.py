"""The verdict names the winner, and never calls noise a difference."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from qat.report import Row, verdict
from qat.report.judgement.differences import binomial_error
from qat.report.judgement.verdicts import not_verified
from qat.report.results.metric import ACCURACY, MetricInfo
from qat.report.results.schema import RowKind, VerificationResult


def row(name: str, kind: RowKind, top1: float) -> Row:
    return Row(name, kind, top1, size_bytes=1, size_kind="stored")


def ptq(top1: float, name: str = "PTQ MSE") -> Row:
    return row(name, "ptq", top1)


def qat(top1: float, kind: RowKind = "qat_integer", name: str = "QAT integer") -> Row:
    return row(name, kind, top1)


def test_qat_wins_by_a_clear_margin() -> None:
    result = verdict([ptq(0.90), qat(0.92)], 10_000)
    assert result.outcome == "qat_won"
    assert result.text.startswith("QAT WON: QAT integer is 2.00 points above PTQ MSE (92.00 % against 90.00 %")
    assert result.difference_points == pytest.approx(2.0)
    assert result.standard_error_points == pytest.approx(100 * math.sqrt((0.90 * 0.10 + 0.92 * 0.08) / 10_000))


def test_a_lost_comparison_is_loud() -> None:
    result = verdict([ptq(0.9142), qat(0.91)], 1_000_000)
    assert result.outcome == "qat_lost"
    assert result.text.startswith("QAT LOST to PTQ MSE by 0.42 points: ship the PTQ model")
    assert result.difference_points == pytest.approx(-0.42)


def test_sizes_of_one_kind_are_compared() -> None:
    """A file has its structure beside its numbers, so it is larger than what is stored of the same network."""
    file = dataclasses.replace(
        qat(0.92), name="QAT in ONNX Runtime", kind="qat_onnxruntime", size_bytes=9_000, size_kind="file"
    )
    integer, other = dataclasses.replace(qat(0.92), size_bytes=5_710), dataclasses.replace(ptq(0.90), size_bytes=5_690)
    assert "5.71 kB against 5.69 kB (stored; its file has 9.00 kB)." in verdict([other, integer, file], 1_000).text
    assert "5.71 kB against 5.69 kB (stored)." in verdict([other, integer], 1_000).text
    assert "9.00 kB (file) against 5.69 kB (stored)." in verdict([other, file], 1_000).text


@pytest.mark.parametrize(
    ("top1", "place"), [(0.9142, "0.42 points above"), (0.9058, "0.42 points below"), (0.91, "level with")]
)
def test_noise_is_no_measurable_difference(top1: float, place: str) -> None:
    result = verdict([ptq(0.91), qat(top1)], 1_000)
    assert result.outcome == "no_difference"
    assert result.text.startswith(f"No measurable difference: QAT integer is {place} PTQ MSE")


@pytest.mark.parametrize(("n_test", "outcome"), [(1_571, "no_difference"), (1_572, "qat_won")])
def test_the_border_is_a_p_value_of_5_percent(n_test: int, outcome: str) -> None:
    # 2 points = 1.95996 · √((0.9 · 0.1 + 0.92 · 0.08) / n)  at  n = 3.8415 · (0.09 + 0.0736) / 0.02² = 1571.2
    assert verdict([ptq(0.90), qat(0.92)], n_test).outcome == outcome


def test_equal_perfect_rows_are_level_although_their_error_is_zero() -> None:
    assert verdict([ptq(1.0), qat(1.0)], 100).outcome == "no_difference"


def test_few_samples_are_no_proof_although_their_error_is_zero() -> None:
    one = verdict([ptq(0.0), qat(1.0)], 1)
    assert one.outcome == "no_difference"
    assert one.p_value == pytest.approx(math.erfc((1 / 3) / math.sqrt(2 * (2 / 9) / 3) / math.sqrt(2)))
    assert one.interval is not None
    assert one.interval[0] < 0 < one.interval[1] <= 1
    assert verdict([ptq(0.0), qat(1.0)], 50).outcome == "qat_won"


def test_errors_that_are_no_numbers_prove_nothing() -> None:
    score = MetricInfo("log-likelihood", "", "max", percent=False, errors="bootstrap")
    size: Any = {"size_bytes": 1, "size_kind": "stored", "standard_error": math.nan}
    rows = [Row("PTQ MSE", "ptq", value=-3.0, **size), Row("QAT integer", "qat_integer", value=-2.0, **size)]
    result = verdict(rows, 1, score)
    assert (result.outcome, result.p_value, result.interval) == ("undecided", None, None)


def test_values_that_are_no_numbers_are_no_victory_in_numbers() -> None:
    mae = MetricInfo("mae", "m", "min", percent=False, errors="bootstrap")
    size: Any = {"size_bytes": 1, "size_kind": "stored", "standard_error": 0.01}

    def judged(ptq_value: float, qat_value: float, n_test: int = 100) -> tuple[str, str]:
        rows = [Row("PTQ", "ptq", value=ptq_value, **size), Row("QAT", "qat_integer", value=qat_value, **size)]
        result = verdict(rows, n_test, mae, comparison=lambda *_: None)
        return result.outcome, result.text

    assert judged(0.1, math.nan)[0] == "qat_lost"
    assert "(not finite against 0.1 m mae" in judged(0.1, math.nan)[1]
    assert judged(0.1, math.nan)[1].startswith("QAT LOST to PTQ: QAT has no value (")
    assert judged(math.nan, 0.1)[1].startswith("QAT WON: PTQ has no value (")
    assert judged(math.inf, 0.1)[0] == "qat_won"
    for broken in (math.nan, math.inf):
        outcome, text = judged(broken, math.nan)
        assert "nan" not in text
        assert outcome == "undecided"
    assert "Ship neither" in judged(math.nan, math.nan)[1]
    assert judged(0.2, 0.1)[0] == "qat_won"
    assert judged(0.2, 0.1, n_test=1)[0] == "undecided"
    assert judged(0.2, 0.1, n_test=1)[1].endswith("Test on more samples: one tells nothing.")


def test_a_score_that_crosses_zero_by_little_was_trained() -> None:
    score = MetricInfo("return", "", "max", percent=False, errors="none")
    size: Any = {"size_bytes": 1, "size_kind": "stored"}

    def judged(float_value: float, qat_value: float) -> str:
        rows = [("float", float_value), ("ptq", float_value), ("qat_integer", qat_value)]
        return verdict([Row(kind, kind, value=value, **size) for kind, value in rows], 100, score).outcome

    assert judged(-0.001, 0.001) == "undecided"
    assert judged(-0.1, 0.9) == "float_untrained"


def test_a_lower_error_is_the_better_one() -> None:
    mae = MetricInfo("mae", "°C", "min", percent=False, errors="bootstrap")
    size: Any = {"size_bytes": 1, "size_kind": "stored"}
    rows = [
        Row("float", "float", value=1.2, standard_error=0.1, **size),
        Row("PTQ MSE", "ptq", value=1.3, standard_error=0.1, **size),
        Row("PTQ min-max", "ptq", value=9.0, standard_error=0.1, **size),
        Row("QAT integer", "qat_integer", value=13.0, standard_error=0.2, **size),
    ]
    result = verdict(rows, 500, mae, "samples")
    assert (result.outcome, result.ptq) == ("qat_lost", "PTQ MSE")
    assert "LOST to PTQ MSE by 11.7 °C" in result.text
    assert "13 °C against 1.3 °C mae" in result.text
    assert result.difference == pytest.approx(11.7)
    assert result.difference_points is None
    swapped = verdict([*rows[:3], dataclasses.replace(rows[3], value=1.0, standard_error=0.05)], 500, mae)
    assert swapped.outcome == "qat_won"
    assert "lower is better" in swapped.text
    unknown = verdict([dataclasses.replace(row, standard_error=None) for row in rows], 500, mae)
    assert unknown.outcome == "undecided"
    assert "is worse" in unknown.text


def test_a_float_network_that_was_not_trained_gives_no_verdict() -> None:
    def judged(float_value: float, chance: float | None = 0.1) -> str:
        rows = [row("float", "float", float_value), ptq(float_value), qat(0.92)]
        return verdict(rows, 10_000, dataclasses.replace(ACCURACY, chance=chance)).outcome

    assert judged(0.105) == "float_untrained"  # chance
    assert judged(0.80) == "float_untrained"  # far below what it was the start of
    assert judged(0.91) == "qat_won"
    assert judged(0.91, None) == "qat_won"
    few = [row("float", "float", 0.22), ptq(0.2), qat(0.3)]
    said = verdict(few, 50, dataclasses.replace(ACCURACY, chance=0.0948)).text
    assert "22.00 % top-1 on 50 test samples is not clearly better than the 9.48 % that its outputs reach" in said


def test_the_best_ptq_row_is_the_opponent() -> None:
    rows = [ptq(0.5, "PTQ min-max"), ptq(0.93, "PTQ MSE"), ptq(0.9, "PTQ percentile"), qat(0.92)]
    result = verdict(rows, 1_000_000)
    assert (result.outcome, result.ptq) == ("qat_lost", "PTQ MSE")


def test_the_row_nearest_to_the_artefact_is_judged() -> None:
    rows = [
        qat(0.99, "qat_fake_quant", "fake"),
        qat(0.95, "qat_integer", "integer"),
        qat(0.80, "qat_onnxruntime", "onnx"),
    ]
    judged = []
    while rows:
        judged.append(verdict([ptq(0.9), *rows], 1000).qat)
        rows.pop()
    assert judged == ["onnx", "integer", "fake"]


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        ([], "no QAT row"),
        ([ptq(0.9), row("float", "float", 0.95)], "no QAT row"),
        ([ptq(0.9), row("QAT step 0", "step0", 0.95)], "no QAT row"),
        ([qat(0.9)], "no PTQ row"),
    ],
    ids=["empty", "float only", "step 0 is not QAT", "no PTQ"],
)
def test_a_missing_side_is_undecided(rows: list[Row], text: str) -> None:
    result = verdict(rows, 1000)
    assert result.outcome == "undecided"
    assert text in result.text


def test_the_number_of_images_is_required() -> None:
    with pytest.raises(ValueError, match="n_test=0: give the number of test samples"):
        verdict([ptq(0.9), qat(0.9)], 0)


def test_binomial_error_matches_a_simulation() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.8, size=20_000) / 200
    assert binomial_error(0.8, 200) == pytest.approx(draws.std(), rel=0.03)


def test_a_file_of_an_untrained_network_that_does_not_pass_says_why() -> None:
    found = VerificationResult(9, 3, 0.5, 1, 10, file="model.unverified.onnx")
    untrained = verdict(
        [row("float", "float", 0.1), ptq(0.1), qat(0.1)], 1_000, dataclasses.replace(ACCURACY, chance=0.1)
    )
    text = not_verified(untrained, found.file, found.failure).text
    assert text.startswith("NOT VERIFIED, do not deploy model.unverified.onnx: ")
    assert "the float network was not trained: 10.00 %" in text
    assert "not trained" not in not_verified(verdict([ptq(0.9), qat(0.9)], 1_000), found.file, found.failure).text


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("values", [(math.inf, 30.0), (30.0, math.inf), (-math.inf, 30.0), (30.0, -math.inf)])
def test_an_infinite_value_wins_nothing_and_written_results_say_the_same(
    values: tuple[float, float], mode: Any
) -> None:
    """A perfect PSNR is infinite, which a results file cannot hold."""
    size: Any = {"size_bytes": 1, "size_kind": "stored", "standard_error": 0.1}
    kinds: list[RowKind] = ["float", "ptq", "qat_integer"]
    rows = [Row(kind, kind, value=v, **size) for kind, v in zip(kinds, (29.0, *values), strict=True)]
    metric = MetricInfo("psnr", "dB", mode, percent=False, errors="bootstrap")
    found = verdict(rows, 100, metric)
    assert found.outcome == ("qat_lost" if math.isfinite(values[0]) else "qat_won")
    assert found == verdict([Row.from_dict(row.to_dict()) for row in rows], 100, metric)


def test_an_infinite_value_is_not_called_nan() -> None:
    error = MetricInfo("mae", "", "min", percent=False)
    size: dict[str, Any] = {"size_bytes": 10, "size_kind": "stored"}
    rows = [Row("float", "float", **size), Row("QAT integer", "qat_integer", value=1.0, **size)]  # null in results.json
    assert "the float network was not trained: its mae is not a finite number" in verdict(rows, 100, error).text
    assert error.number(math.inf) == "inf"


def test_a_training_that_exploded_lost_nothing_to_ptq() -> None:
    """Only if it is worse than before its first step, or at chance: weights may grow."""
    reason, chance = (
        "The training diverged, a is 153 times as large as in the float network: lower the learning rate.",
        0.1,
    )

    def judged(before: float, after: float, reason: str = reason) -> str:
        rows = [row("float", "float", 0.98), ptq(0.97), row("QAT step 0", "step0", before), qat(after)]
        return verdict(rows, 500, dataclasses.replace(ACCURACY, chance=chance), exploded=reason).outcome

    assert judged(0.97, 0.25) == judged(0.10, 0.11) == judged(0.97, 0.90) == "diverged"
    assert judged(0.97, 0.25, "") == "qat_lost"
    assert judged(0.97, 0.965) == judged(0.96, 0.97) == "no_difference"
    assert judged(0.20, 0.80) == "qat_lost"
    rows = [row("float", "float", 0.98), ptq(0.97), row("QAT step 0", "step0", 0.96), qat(0.25)]
    assert verdict(rows, 500, exploded=reason).text == (
        f"NO VERDICT. {reason} QAT integer has 25.00 % top-1, against 96.00 % before its first step."
    )


def test_an_error_that_grew_is_worse() -> None:
    metric = MetricInfo("mae", "°C", "min", percent=False)
    values = {"float": 1.0, "ptq": 1.1, "step0": 1.2, "qat_integer": 9.0}
    rows = [
        Row(kind, kind, value=value, size_bytes=1, size_kind="stored", standard_error=0.01)  # type: ignore[arg-type]
        for kind, value in values.items()
    ]
    assert verdict(rows, 500, metric, exploded="The training diverged.").outcome == "diverged"
    assert (
        verdict([*rows[:3], dataclasses.replace(rows[3], value=1.1)], 500, metric, exploded="x").outcome != "diverged"
    )
