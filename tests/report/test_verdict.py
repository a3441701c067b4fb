"""The verdict names the winner, and never calls noise a difference."""

import math

import numpy as np
import pytest

from qat.report import Row, verdict
from qat.report.schema import RowKind
from qat.report.verdicts import binomial_error


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


@pytest.mark.parametrize(
    ("top1", "place"), [(0.9142, "0.42 points above"), (0.9058, "0.42 points below"), (0.91, "level with")]
)
def test_noise_is_no_measurable_difference(top1: float, place: str) -> None:
    result = verdict([ptq(0.91), qat(top1)], 1_000)
    assert result.outcome == "no_difference"
    assert result.text.startswith(f"No measurable difference: QAT integer is {place} PTQ MSE")


@pytest.mark.parametrize(("n_test", "outcome"), [(1_635, "no_difference"), (1_637, "qat_won")])
def test_the_border_is_two_standard_errors(n_test: int, outcome: str) -> None:
    # 2 points = 2 · √((0.9 · 0.1 + 0.92 · 0.08) / n)  at  n = 4 · (0.09 + 0.0736) / 0.02² = 1636
    assert verdict([ptq(0.90), qat(0.92)], n_test).outcome == outcome


def test_equal_perfect_rows_are_level_although_their_error_is_zero() -> None:
    assert verdict([ptq(1.0), qat(1.0)], 100).outcome == "no_difference"


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
    with pytest.raises(ValueError, match="n_test=0: give the number of test images"):
        verdict([ptq(0.9), qat(0.9)], 0)


def test_binomial_error_matches_a_simulation() -> None:
    draws = np.random.default_rng(0).binomial(200, 0.8, size=20_000) / 200
    assert binomial_error(0.8, 200) == pytest.approx(draws.std(), rel=0.03)
