"""The bits of every layer, the Pareto front and other runs in report.md and report.html."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qat.report import Results
from qat.report.pages.html import html
from qat.report.pages.markdown import markdown
from qat.report.results.allocation import AllocationResult, BitsPoint, CostRange, LayerBits, OtherRun
from qat.report.results.metric import ACCURACY, MetricInfo
from qat.report.text.allocation_tables import other_run_sentence

FOUND = AllocationResult(
    method="the divergence",
    costs=[CostRange("size", "bytes", 9_891.0, 10_035.0, 7_731.0, 21_555.0, 77_312.0)],
    layers=[
        LayerBits("stem", 72, 4_608, 8, 8, kept=True),
        LayerBits("left", 576, 36_864, 3, None, kept=False, harm=0.0123),
        LayerBits("right", 576, 36_864, None, 3, kept=False, harm=0.0, shares="left"),
    ],
    points=[
        BitsPoint("mixed", True, True, 9_891.0, 0.0089, 0.0473),
        BitsPoint("w3", False, False, 10_035.0, 0.0168, None),
    ],
)


def test_the_report_shows_the_allocation_and_the_front(results: Results) -> None:
    with_bits = replace(results, allocation=FOUND)
    assert Results.from_dict(with_bits.to_dict()) == with_bits
    text, page = markdown(with_bits), html(with_bits)
    assert "| `left` |  | 576 | 36,864 | 3 | float | 0.0123 |" in text
    assert "| `right` | shares with left | 576 | 36,864 | float | 3 | 0 |" in text
    assert "| mixed | chosen | 9,891 | 0.0089 | 0.0473 |" in text
    assert "| w3 |  | 10,035 | 0.0168 | – |" in text
    assert 'id="allocation"' in page
    assert page.count('class="dot') >= 2
    assert "Bits under a budget" not in markdown(results)
    assert "Bits under a budget" not in html(results)


@pytest.mark.parametrize(
    ("difference", "error", "better", "said"),
    [
        (0.012, 0.003, True, "QAT beat w3 by 1.20 ± 0.30 points, at least two paired standard errors"),
        (0.004, 0.003, False, "QAT did not beat w3: 0.40 ± 0.30 points, less than two paired standard errors"),
        (
            -0.012,
            0.003,
            False,
            "QAT did not beat w3: -1.20 ± 0.30 points, worse by at least two paired standard errors",
        ),
        (None, None, None, "Nothing tells whether QAT beats w3"),
    ],
)
def test_another_run_is_beaten_by_two_paired_standard_errors_or_not(
    results: Results, difference: float | None, error: float | None, better: bool | None, said: str
) -> None:
    other = OtherRun("QAT", "w3", difference, error, better, 900, 1_000)
    assert other_run_sentence(other, ACCURACY).startswith(said)
    compared = replace(results, other_runs=[other])
    assert said.replace("_", "\\_") in markdown(compared)
    assert said in html(compared)


def test_two_standard_errors_of_few_samples_beat_nothing() -> None:
    other = OtherRun("QAT", "w3", 0.05, 0.02, False, 900, 1_000, p_value=0.0625)
    said = other_run_sentence(other, ACCURACY)
    assert said.startswith("QAT did not beat w3: 5.00 ± 2.00 points, p = 0.062, too few samples")


def test_of_an_error_the_smaller_value_wins() -> None:
    other = OtherRun("QAT", "w3", -0.5, 0.1, True, 900, 1_000)
    assert other_run_sentence(other, MetricInfo("mae", "m", "min", percent=False)).startswith(
        "QAT beat w3 by -0.5 ± 0.1 m"
    )
