"""What a map says about neighbours is what the original space says."""

import numpy as np
import pandas as pd
import pytest

import coral_lab as cl
from coral_lab.query import Product
from coral_lab.results import FRAME
from coral_lab.study import geometry
from coral_lab.study.cluster_names import Clusters
from coral_lab.study.plots import SYMBOLS
from coral_lab.widgets.linked_maps import side_by_side
from coral_lab.widgets.map_drawing import LOOKS, NO_LABEL, NUMBERS, OTHER
from coral_lab.widgets.neighbourhood_map import NeighbourhoodMap

NEAR, TORN, RIGHT, STARS = 1, 2, 3, 4


@pytest.fixture(scope="module")
def space(shop):
    """Products, and unit vectors that have nothing to do with them."""
    rows = np.random.default_rng(0).normal(size=(150, 8)).astype(np.float32)
    return shop.products[:150], rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def chart(space):
    products, rows = space
    return NeighbourhoodMap(products, rows, geometry.pca(rows)[0], k=8)


def looks(chart):
    """Colour and shape of each point, as plotly draws them."""
    marker = chart.points.marker
    shapes = np.frombuffer(__import__("base64").b64decode(marker.symbol["bdata"]), np.uint8)
    scale, count = marker.colorscale, marker.cmax + 0.5
    colours = [next(c for at, c in scale[::-1] if at <= (code + 0.5) / count) for code in marker.color]
    return [(c, SYMBOLS[list(NUMBERS).index(s)]) for c, s in zip(colours, shapes, strict=True)]


def legend(chart):
    return {trace.name: (trace.marker.color, trace.marker.symbol) for trace in chart.figure.data[STARS + 1 :]}


def ends(trace):
    """Where each line of a trace leads."""
    return [(x, y) for x, y in zip(trace.x[1::3], trace.y[1::3], strict=True)]


@pytest.mark.parametrize("name", ["class", "language", "color", "material"])
def test_a_point_looks_as_the_legend_says(chart, name):
    chart.colour.value = name
    entries = legend(chart)
    other = next((look for label, look in entries.items() if label.startswith("other (")), None)
    assert [entries.get(label, other) for label in chart.labels[name]] == looks(chart)
    assert len(set(entries.values())) == len(entries)
    assert chart.static().figure.data[0].marker.color == entries[chart.static().figure.data[0].name][0]


@pytest.mark.parametrize("count", [LOOKS, LOOKS + 1, 40])
def test_labels_beyond_what_can_be_told_apart_are_one_other(space, count):
    products, rows = space
    labels = [f"label {i % count}" for i in range(150)]
    chart = NeighbourhoodMap(products, rows, rows[:, :2], extra={"many": labels})
    chart.colour.value = "many"
    entries = legend(chart)
    assert len(entries) == LOOKS == len(set(entries.values()))
    others = [name for name in entries if name.startswith("other")]
    assert others == ([] if count == LOOKS else [f"other ({count - LOOKS + 1} labels)"])
    expected = [entries.get(label, entries[others[0]] if others else None) for label in labels]
    assert looks(chart) == expected


def test_what_is_no_label_of_its_own_is_grey_and_lies_under_the_others(space):
    products, rows = space
    labels = [f"label {i % 40}" for i in range(150)]
    chart = NeighbourhoodMap(products, rows, rows[:, :2], extra={"many": labels})
    chart.colour.value = "many"
    drawn = [trace for trace in chart.static().figure.data if trace.name.startswith(("label", "other"))]
    assert len({trace.marker.color for trace in drawn}) == len(drawn) == LOOKS
    assert drawn[0].marker.color == OTHER
    assert drawn[0].legendrank > drawn[1].legendrank
    assert {trace.marker.symbol for trace in drawn} == {"circle"}


def test_the_commonest_labels_have_the_colours(space):
    products, rows = space
    labels = [f"label {i % 20}" if i < 100 else "z, the commonest" for i in range(150)]
    chart = NeighbourhoodMap(products, rows, rows[:, :2], extra={"many": labels})
    assert chart.coded("many")[0][0] == "z, the commonest"
    assert chart.coded("many", [7])[0][:2] == ["label 7", "z, the commonest"]


def test_what_is_chosen_in_linked_maps_has_colours_and_all_else_is_pale(space):
    products, rows = space
    labels = [f"label {i % 40}" for i in range(150)]
    maps = [NeighbourhoodMap(products, rows, rows[:, :2], k=5, extra={"many": labels}) for _ in range(2)]
    side_by_side(*maps)
    assert all(trace.selectedpoints is None for trace in maps[0].static().figure.data)
    maps[0].select([39, 38])  # of labels that are among the rarest
    for chart in maps:
        chart.colour.value = "many"
        drawn = {trace.name: trace for trace in chart.static().figure.data}
        assert {"label 38", "label 39"} < set(drawn)
        assert sum(len(trace.selectedpoints) for trace in drawn.values()) == 2
        first = drawn["label 39"]
        assert first.x[first.selectedpoints[0]] == np.float32(rows[39, 0])


def test_the_order_of_many_labels_is_kept(space):
    products, rows = space
    names = [str(number) for number in range(20)]
    labels = pd.Categorical([names[i % 20] for i in range(150)], names, ordered=True)
    chart = NeighbourhoodMap(products, rows, rows[:, :2], extra={"level": labels})
    assert chart.coded("level")[0] == names


def test_the_order_of_labels_shows_in_the_legend_and_in_brightness(space):
    products, rows = space
    labels = pd.Categorical(["low", "mid", "high"] * 50, ["low", "mid", "high"], ordered=True)
    chart = NeighbourhoodMap(products, rows, rows[:, :2], extra={"level": labels})
    chart.colour.value = "level"
    colours = [entry[0] for entry in legend(chart).values()]
    assert list(legend(chart)) == ["low", "mid", "high"]
    light = [sum(map(int, colour[4:-1].split(","))) for colour in colours]
    assert light == sorted(light)


def test_a_click_shows_the_space_s_neighbours_and_marks_the_torn_ones(chart, space):
    chart.look_at(11)
    near = geometry.neighbours(space[1], 8)[11]
    assert chart.chosen == [11, *near]
    torn = geometry.torn(space[1], chart.places, 8)[11]
    assert 0 < torn.sum() < 8
    for number, some in ((NEAR, near[~torn]), (TORN, near[torn])):
        assert ends(chart.figure.data[number]) == [tuple(chart.places[i]) for i in some]
    assert chart.gallery.value.count("torn away") == torn.sum()
    assert f"{torn.sum()} of 8" in chart.message.value
    frozen = chart.static()
    assert frozen.gallery == chart.gallery.value
    assert {"near in the space", "torn away by the map"} <= {trace.name for trace in frozen.figure.data}
    chart.select([])
    assert not len(chart.figure.data[NEAR].x)
    assert chart.selection.empty
    assert chart.points.selectedpoints is None


def test_a_lasso_fills_the_gallery_and_the_table(chart, space):
    chart.select([3, 5, 140])
    assert list(chart.selection["id"]) == [space[0][i].id for i in (3, 5, 140)]
    assert chart.gallery.value.count("<img") == 3
    chart.select(range(100))
    assert chart.gallery.value.count("<img") == 24
    assert "100 chosen, the first 24 shown" in chart.message.value


def test_what_the_mouse_finds_can_be_written(chart, space):
    chart.find.value = space[0][11].id
    assert chart.chosen[0] == 11
    assert len(chart.chosen) == 9
    word = space[0][11].title.split()[0].lower()
    chart.find.value = word
    assert chart.chosen == [i for i, p in enumerate(space[0]) if word in p.title.lower()]
    chart.find.value = "no such words"
    assert 'role="alert"' in chart.message.value
    assert "no such words" in chart.message.value
    chart.clear.click()
    assert chart.chosen == []
    with pytest.raises(KeyError, match="'nowhere' is not among"):
        chart.look_at("nowhere")


def test_queries_are_stars_joined_to_their_positives(space):
    products, rows = space
    places = geometry.pca(rows)[0]
    queries = [
        cl.Query("q0", "x", positives=(products[4].id, "elsewhere", products[9].id)),
        cl.Query("q1", "x"),
    ]
    chart = NeighbourhoodMap(products, rows, places, k=8, queries=queries, query_embeddings=rows[[4, 20]])
    near = np.argsort(-rows @ rows[4], kind="stable")[:8]
    np.testing.assert_allclose(
        (chart.figure.data[STARS].x[0], chart.figure.data[STARS].y[0]), np.median(places[near], 0)
    )
    assert ends(chart.figure.data[RIGHT]) == [tuple(places[4]), tuple(places[9])]
    chart.ask.value = 0
    assert chart.chosen == near.tolist()
    assert chart.gallery.value.count("✓ positive") == sum(i in (4, 9) for i in near) >= 1
    assert len(ends(chart.figure.data[NEAR])) + len(ends(chart.figure.data[TORN])) == 8


def test_two_maps_share_what_is_chosen_and_show_what_changed(space):
    products, rows = space
    other = rows.copy()
    other[::2] = other[::2, ::-1]
    maps = [NeighbourhoodMap(products, own, geometry.pca(own)[0], k=5) for own in (rows, other)]
    side_by_side(*maps)
    maps[0].select([4, 9])
    assert maps[1].chosen == [4, 9]
    assert list(maps[1].points.selectedpoints) == [4, 9]
    maps[1].look_at(7)
    assert maps[0].chosen == [7, *geometry.neighbours(rows, 5)[7]]
    assert maps[1].chosen == [7, *geometry.neighbours(other, 5)[7]]
    maps[0].colour.value = "neighbours kept"
    common = [
        len(set(a) & set(b))
        for a, b in zip(geometry.neighbours(rows, 5), geometry.neighbours(other, 5), strict=True)
    ]
    low = [min(20 * n, 80) for n in common]
    assert list(maps[0].labels["neighbours kept"]()) == [f"{n}–{n + 20}% kept" for n in low]
    assert len(set(low)) > 1


def test_fifty_thousand_points_are_drawn_and_coloured_in_seconds():
    from time import process_time

    count, random = 51_177, np.random.default_rng(0)
    products = [Product(f"p{i}", f"title {i % 300}", class_name=f"class {i % 116}") for i in range(count)]
    rows = random.normal(size=(count, 8)).astype(np.float32)
    start = process_time()
    chart = NeighbourhoodMap(products, rows, rows[:, :2])
    built = process_time()
    chart.colour.value = "language"
    chart.look_at(5)
    chart.select(range(count))
    # Well under half of this on a calm machine; a look at each point in plotly's way takes 5 s more.
    assert built - start < 6
    assert process_time() - built < 4
    frozen = chart.static(limit=500).figure
    assert "of 51,177 drawn" in frozen.layout.title.text
    assert sum(len(trace.x) for trace in frozen.data) <= 1000


def test_without_webgl_it_is_svg(space):
    products, rows = space
    chart = NeighbourhoodMap(products, rows, rows[:, :2], webgl=False)
    assert {trace.type for trace in chart.figure.data} == {"scatter"}
    assert "webgl=False" in chart.detail.value
    assert FRAME in chart.detail.value


def test_what_does_not_fit_is_refused(space):
    products, rows = space
    with pytest.raises(ValueError, match="give one each"):
        NeighbourhoodMap(products, rows[:5], np.zeros((150, 2)))
    with pytest.raises(ValueError, match="1 queries and 0 query_embeddings"):
        NeighbourhoodMap(products, rows, np.zeros((150, 2)), queries=[cl.Query("q", "x")])
    maps = [NeighbourhoodMap(some, rows[:20], np.zeros((20, 2))) for some in (products[:20], products[20:40])]
    with pytest.raises(ValueError, match="other products"):
        side_by_side(*maps)


@pytest.mark.parametrize("known", [0, 1, 5])
def test_products_that_a_categorical_leaves_out_are_drawn_and_say_so(space, known):
    products, rows = space
    places = geometry.pca(rows)[0]
    prices = [("low", "high")[i % 2] if i < known else None for i in range(len(products))]
    values = pd.Categorical(prices, ["low", "high"][: max(known, 0)], ordered=True)
    chart = NeighbourhoodMap(products, rows, places, extra={"price": values})
    names, codes, _ = chart.coded("price")
    assert names[-1] == NO_LABEL
    assert (codes == len(names) - 1).sum() == len(products) - known
    chart.colour.value = "price"
    drawn = {trace.name: trace for trace in chart.static().figure.data}
    assert len(drawn[NO_LABEL].x) == len(products) - known
    assert drawn[NO_LABEL].marker.color == OTHER


def test_clusters_of_other_products_are_refused(space):
    products, rows = space
    places = geometry.pca(rows)[0]
    few = Clusters(np.zeros(3, np.int64), ("bag",))
    with pytest.raises(ValueError, match=f"{len(products)} products and clusters of 3"):
        NeighbourhoodMap(products, rows, places, clusters=few)
