"""Curves show each term once, in colours that can be told apart; a live plot is its static twin."""

import numpy as np
import pandas as pd
import pytest

from coral_lab.metrics import Estimate
from coral_lab.study.plots import (
    GREY,
    PALETTE,
    bars,
    curves,
    differences,
    estimates_by,
    growth,
    matrix,
    scatter,
)
from coral_lab.widgets.parts import LivePlot

ROWS = [
    {"step": 1, "seconds": 0.1, "contrastive": 4.0, "reg vision": 1.0, "learning_rate": 1e-3},
    {"step": 2, "seconds": 0.2, "contrastive": 2.0, "reg vision": 0.5, "learning_rate": 1e-3, "R@1": 0.25},
]


def test_losses_left_measures_right():
    figure = curves({"run": pd.DataFrame(ROWS)}, smooth=1)
    found = {trace.name: (list(trace.x), list(trace.y), trace.xaxis) for trace in figure.data}
    assert found == {
        "contrastive": ([1, 2], [4.0, 2.0], "x"),
        "reg vision": ([1, 2], [1.0, 0.5], "x"),
        "R@1": ([2], [0.25], "x2"),
    }


def test_without_measures_the_losses_stand_alone():
    figure = curves({"run": pd.DataFrame(ROWS[:1])})
    assert [trace.name for trace in figure.data] == ["contrastive", "reg vision"]
    assert [note.text for note in figure.layout.annotations] == ["losses"]


def test_several_logs_have_a_colour_each(tmp_path):
    pd.DataFrame(ROWS).to_csv(tmp_path / "log.csv", index=False)
    figure = curves({"a": tmp_path / "log.csv", "b": pd.DataFrame(ROWS)}, losses=["contrastive"])
    assert [(t.name, t.line.color) for t in figure.data] == [
        ("a: contrastive", PALETTE[0]),
        ("a: R@1", PALETTE[0]),
        ("b: contrastive", PALETTE[1]),
        ("b: R@1", PALETTE[1]),
    ]


def test_a_running_mean_smooths_losses_only():
    figure = curves({"run": pd.DataFrame(ROWS)}, smooth=2)
    assert list(figure.data[0].y) == [4.0, 3.0]


def test_an_empty_log_is_named():
    with pytest.raises(ValueError, match="log 'run' has no rows"):
        curves({"run": pd.DataFrame(columns=["step", "contrastive"])})


def test_the_live_plot_follows_and_has_a_static_twin():
    live = LivePlot(every=1)
    for row in ROWS:
        live(row)
    drawn = {trace.name: (list(trace.x), list(trace.y)) for trace in live.figure.data}
    assert drawn == {"contrastive": ([1, 2], [4.0, 2.0]), "reg vision": ([1, 2], [1.0, 0.5])}
    assert {trace.name for trace in live.static().data} == {"contrastive", "reg vision", "R@1"}


def test_a_map_has_every_point_once_and_tells_labels_apart_without_colour():
    labels = [f"label {i % 9}" for i in range(40)]
    places = np.random.default_rng(0).standard_normal((40, 2))
    figure = scatter(places, labels, [f"text {i}" for i in range(40)])
    np.testing.assert_allclose(
        sorted(x for trace in figure.data for x in trace.x), sorted(places[:, 0]), 1e-6
    )
    styles = {(trace.marker.color, trace.marker.symbol) for trace in figure.data}
    assert len(styles) == 9
    for trace in figure.data:
        assert {labels[int(text.split()[1])] for text in trace.text} == {trace.name}


def test_bars_show_their_intervals():
    figure = bars({"a": Estimate(0.5, 0.4, 0.7, 10), "b": Estimate(0.1, 0.1, 0.1, 10)})
    bar = figure.data[0]
    assert list(bar.y) == [0.5, 0.1]
    np.testing.assert_allclose(bar.error_y.array, [0.2, 0])
    np.testing.assert_allclose(bar.error_y.arrayminus, [0.1, 0])


def test_a_matrix_keeps_its_rows_in_order():
    frame = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0]}, index=["top", "bottom"])
    figure = matrix(frame, middle=0.0)
    assert list(figure.data[0].y) == ["top", "bottom"]
    assert figure.layout.yaxis.autorange == "reversed"
    assert np.asarray(figure.data[0].z).tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [(0.0, 1.0, 2), (0.0, 250.0, 2), (0.89, 0.905, 3), (0.997, 1.0, 4), (1 - 1e-9, 1.0, 4), (0.5, 0.5, 2)],
)
def test_a_matrix_is_written_with_as_many_decimals_as_tell_its_cells_apart(low, high, written):
    figure = matrix(pd.DataFrame({"x": [low, high], "y": [high, np.nan]}))
    assert figure.data[0].texttemplate == f"%{{z:.{written}f}}"


def test_a_matrix_without_values_is_drawn():
    assert matrix(pd.DataFrame({"x": [np.nan]})).data[0].texttemplate == "%{z:.2f}"


def test_several_maps_show_the_same_points_under_one_legend():
    places = np.random.default_rng(0).standard_normal((12, 2))
    labels = ["a", "b", "b"] * 4
    figure = scatter({"one": places, "two": 2 * places}, labels)
    assert [(t.name, t.showlegend, t.xaxis) for t in figure.data] == [
        ("b", True, "x"),
        ("b", False, "x2"),
        ("a", True, "x"),
        ("a", False, "x2"),
    ]
    np.testing.assert_allclose(figure.data[1].x, 2 * figure.data[0].x)
    with pytest.raises(ValueError, match="12 labels for 11 two"):
        scatter({"one": places, "two": places[1:]}, labels)
    with pytest.raises(ValueError, match="12 labels for 3 texts"):
        scatter(places, labels, ["x"] * 3)


def test_labels_beyond_those_to_be_coloured_are_grey_behind_the_others():
    labels = ["a"] * 5 + ["b"] * 4 + ["c"] * 2 + ["d"]
    places = np.arange(24.0).reshape(12, 2)
    figure = scatter(places, labels, coloured=2)
    drawn = [(trace.name, trace.marker.color, len(trace.x)) for trace in figure.data]
    assert drawn == [("the rest", "#d0d0d0", 3), ("a", PALETTE[0], 5), ("b", PALETTE[1], 4)]
    ranks = {trace.name: trace.legendrank for trace in figure.data}
    assert sorted(ranks, key=ranks.get) == ["a", "b", "the rest"]
    assert [trace.name for trace in scatter(places, labels, coloured=4).data] == ["a", "b", "c", "d"]


def test_grouped_bars_have_a_colour_a_group():
    one = Estimate(0.5, 0.4, 0.7, 10)
    figure = bars({"first": {"a": one, "b": one}, "second": {"a": one}})
    assert [(t.name, list(t.x), t.marker.color) for t in figure.data] == [
        ("first", ["a", "b"], PALETTE[0]),
        ("second", ["a"], PALETTE[1]),
    ]
    assert figure.layout.showlegend


def test_estimates_by_a_column_keep_its_order_and_leave_out_what_is_not_known():
    table = pd.DataFrame({"kind": ["z", "z", "a", "a"], "value": [0.0, 1.0, 0.5, np.nan]})
    found = estimates_by(table, "kind", "value")
    assert list(found) == ["z", "a"]
    assert (found["z"].mean, found["z"].n, found["a"].n) == (0.5, 2, 1)


def test_differences_show_their_intervals():
    table = pd.DataFrame(
        {"difference": [0.1, -0.2], "low": [0.0, -0.3], "high": [0.3, -0.1]}, index=["up", "down"]
    )
    points = differences(table).data[0]
    assert (list(points.x), list(points.y)) == ([0.1, -0.2], ["up", "down"])
    np.testing.assert_allclose(points.error_x.array, [0.2, 0.1])
    np.testing.assert_allclose(points.error_x.arrayminus, [0.1, 0.1])


def test_differences_that_cannot_be_told_apart_are_grey():
    names = ["a", "b", "c"]
    table = pd.DataFrame({"difference": [0.1, 0.2, 0.3], "low": 0.0, "high": 0.4}, index=names)
    figure = differences(table.assign(**{"p (Holm)": [0.05, 0.04, np.nan]}), unit="share")
    drawn = {trace.marker.color: list(trace.y) for trace in figure.data if trace.mode == "markers"}
    assert drawn == {PALETTE[0]: ["b"], GREY: ["a", "c"]}
    assert list(figure.layout.yaxis.categoryarray) == names
    assert figure.layout.xaxis.title.text == "share (grey: cannot be told apart)"
    assert differences(table.assign(**{"p (Holm)": 0.01}), unit="share").layout.xaxis.title.text == "share"
    assert {trace.marker.color for trace in differences(table).data} == {PALETTE[0], None}


def test_growth_within_a_decade_has_ticks_between_powers_of_ten():
    table = pd.DataFrame(
        {"a": [1.5, 3.5, np.nan], "b": [1.2, np.nan, 7.0]}, pd.Index([300, 900, 1_800_000], name="n")
    )
    figure = growth(table, "<b>", "s")
    assert (figure.layout.xaxis.dtick, figure.layout.yaxis.dtick) == (1, "D2")
    assert growth(table / 100).layout.yaxis.tickformat == "~g", "no thousandths by a letter"
    assert figure.layout.title.text == "&lt;b&gt;"
    assert [list(trace.x) for trace in figure.data] == [[300, 900], [300, 1_800_000]], (
        "what is missing breaks none"
    )
