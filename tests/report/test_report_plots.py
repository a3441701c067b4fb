"""Pictures are valid, reproducible, readable without colour, and drawn only if there are data."""

import dataclasses
import io
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from qat.report import Results, Row
from qat.report.pictures import plots
from qat.report.pictures.placement import beside_each_other, spread
from qat.report.pictures.plots import ROW_STYLES, draw_all, draw_training


def pixels(png: bytes) -> np.ndarray:
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    return imread(io.BytesIO(png), format="png")


def test_every_picture_is_a_png_with_something_on_it(results: Results) -> None:
    pictures = draw_all(results)
    assert set(pictures) == {"accuracy.png", "size.png", "latency.png", "training.png", "oscillations.png"}
    for name, png in pictures.items():
        image = pixels(png)
        assert min(image.shape[:2]) > 400, name
        assert 0.005 < (image[..., :3].min(axis=-1) < 0.9).mean() < 0.5, f"{name} is blank or full"


@pytest.mark.slow
def test_equal_results_give_equal_bytes(results: Results) -> None:
    assert draw_all(results) == draw_all(results)


def test_pictures_show_the_numbers(results: Results) -> None:
    rows = [
        dataclasses.replace(row, top1=row.score - 0.05, value=row.score - 0.05) if row.kind == "ptq" else row
        for row in results.rows
    ]
    assert results.oscillations is not None
    calmer = dataclasses.replace(results.oscillations, layers=results.oscillations.layers[:1])
    before, after = draw_all(results), draw_all(dataclasses.replace(results, rows=rows, oscillations=calmer))
    assert {name for name in before if before[name] == after[name]} == {"latency.png", "training.png"}


@pytest.mark.parametrize("largest", [950, 82_700, 1_043_000, 90_000_000])
def test_labels_of_sizes_do_not_touch(results: Results, largest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(plots, "_png", lambda figure, axes, title: drawn.extend((figure, axes)) or b"")
    rows = [dataclasses.replace(row, size_bytes=largest // (1 + place)) for place, row in enumerate(results.rows)]
    plots.draw_size(dataclasses.replace(results, rows=rows))
    figure, axes = drawn
    figure.draw_without_rendering()
    low, high = axes.get_xlim()
    places = [label.get_window_extent() for label in axes.get_xticklabels() if low <= label.get_position()[0] <= high]
    gaps = [right.x0 - left.x1 for left, right in itertools.pairwise(places)]
    assert min(gaps) > places[0].height, gaps


def test_the_training_picture_shows_validation_data_alone(results: Results) -> None:
    other = [dataclasses.replace(row, value=0.5) for row in results.rows]
    assert draw_training(dataclasses.replace(results, rows=other)) == draw_training(results)


def test_what_was_not_measured_is_not_drawn(results: Results) -> None:
    assert results.training is not None
    step0 = [row for row in results.rows if row.kind == "step0"]
    bare = dataclasses.replace(results, training=None, oscillations=None, rows=step0)
    assert set(draw_all(bare)) == {"accuracy.png"}
    nan_curve = dataclasses.replace(results.training, val_top1=[None, None])
    assert "training.png" not in draw_all(dataclasses.replace(results, training=nan_curve))
    with pytest.raises(ValueError, match="no training to draw"):
        draw_training(bare)


@pytest.mark.parametrize(
    "top1", [0.0, pytest.param(0.5, marks=pytest.mark.slow), pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_equal_rows_of_equal_size_can_be_drawn(results: Results, top1: float) -> None:
    rows: list[Row] = [dataclasses.replace(row, top1=top1, value=top1, size_bytes=1000) for row in results.rows]
    for png in draw_all(dataclasses.replace(results, rows=rows)).values():
        pixels(png)


def test_kinds_differ_in_shape_and_not_only_in_colour() -> None:
    assert len({style.marker for style in ROW_STYLES.values()}) == len(ROW_STYLES)


@given(st.lists(st.floats(-100, 100), max_size=8), st.floats(0.1, 10))
def test_spread_labels_keep_their_order_and_their_distance(positions: list[float], gap: float) -> None:
    moved = spread(positions, gap)
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    distances = np.diff([moved[index] for index in order])
    assert (distances >= gap - 1e-6).all()
    assert sum(moved) == pytest.approx(sum(positions), abs=1e-6)


def test_labels_with_room_stay_at_their_points() -> None:
    assert spread([3.0, 1.0, 2.0], gap=0.5) == [3.0, 1.0, 2.0]


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10), st.floats(0, 5)), max_size=9))
def test_no_whisker_hides_another(points: list[tuple[float, float, float]]) -> None:
    spans = [(x, y - error, y + error) for x, y, error in points]
    moved = beside_each_other(spans, step=0.5)
    for i, j in itertools.combinations(range(len(spans)), 2):
        overlap = spans[i][1] <= spans[j][2] and spans[j][1] <= spans[i][2]
        assert not overlap or abs(moved[i] - moved[j]) >= 0.49


def test_dollars_in_names_are_no_formulas(results: Results) -> None:
    """$7*7}$ is one that matplotlib cannot read, and would stop the report behind the training."""
    rows = [dataclasses.replace(results.rows[0], name="a $7*7}$"), *results.rows[1:]]
    strange = dataclasses.replace(results, recipe="from 3 $ to 5 $_^", rows=rows)
    assert set(draw_all(strange)) == set(draw_all(results))
