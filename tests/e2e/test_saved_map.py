"""A saved map in a real browser that may fetch nothing: hover, click, lasso, colours, search, without an
error."""

import json

import numpy as np
import pytest

from coral_lab.query import Condition, Product, Query
from coral_lab.study.cluster_names import clusters
from coral_lab.widgets.neighbourhood_map import NeighbourhoodMap
from tests.conftest import noise
from tests.e2e.serving import NEEDS_CHROMIUM, SHOTS, chromium, new_page

pytestmark = NEEDS_CHROMIUM
HOSTILE = "</script><img src=x onerror=alert(1)> \u2028 \u202e $5 \x00".replace("\x00", "")


@pytest.fixture(scope="module")
def chart():
    rng = np.random.default_rng(0)
    products = [
        Product(
            f"17{i:017}",
            HOSTILE if i == 3 else f"title {i}",
            b"broken" if i == 5 else noise(60, 40, seed=i),
            ("bag", "shoe")[i % 2],
            attributes={"color": (("red", "blue", "green")[i % 3],)},
        )
        for i in range(120)
    ]
    rows = rng.normal(size=(120, 16)) + 4 * np.eye(16)[np.arange(120) % 2]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    places = rng.normal(size=(120, 2)) + 6 * (np.arange(120) % 2)[:, None]
    query = Query("q", "bag", (Condition("color", products[0], "red"),), ".", positives=(products[6].id,))
    return NeighbourhoodMap(
        products,
        rows,
        places,
        queries=[query],
        query_embeddings=rows[:1],
        clusters=clusters(products, rows, 2),
        title="a <b>map</b>",
    )


@pytest.fixture(scope="module")
def page(chart, tmp_path_factory):
    file = tmp_path_factory.mktemp("map") / "map.html"
    chart.save(file)
    with chromium() as browser:
        page = new_page(browser, 1200, 900)
        page.on("console", lambda said: said.type == "error" and page.problems.append(said.text))
        page.route("http*://**", lambda route: page.problems.append(route.request.url) or route.abort())
        page.goto(file.as_uri())
        page.locator("body[data-ready]").wait_for()
        yield page
        assert page.problems == []


def where(page, chart, i):
    """Where a product's point is in the window."""
    x, y = (float(value) for value in chart.places[i])
    return page.evaluate(
        """([x, y]) => { const map = document.getElementById("map"), axes = map._fullLayout;
           const { x: left, y: top } = map.getBoundingClientRect(), { xaxis, yaxis } = axes;
           return [left + xaxis._offset + xaxis.d2p(x), top + yaxis._offset + yaxis.d2p(y)]; }""",
        [x, y],
    )


def told(page, words):
    page.locator("#said").filter(has_text=words).wait_for()


def gallery(page):
    return page.locator("#gallery figure").evaluate_all("own => own.map(one => one.dataset.id)")


def lonely(chart):
    """A product that no other lies on."""
    apart = np.linalg.norm(chart.places[:, None] - chart.places[None], axis=2) + 99 * np.eye(
        len(chart.places)
    )
    return int(apart.min(1).argmax())


def test_a_point_is_shown_and_its_neighbours_are_those_of_the_space(page, chart):
    i = lonely(chart)
    page.mouse.move(*where(page, chart, i))
    page.locator("#detail b").get_by_text(chart.products[i].title).wait_for()
    assert page.locator("#detail img").evaluate("own => own.complete && own.naturalWidth") == 60
    page.mouse.click(*where(page, chart, i))
    told(page, "neighbours are torn away")
    assert gallery(page) == [chart.products[j].id for j in (i, *chart.neighbours(i))]
    torn = page.locator("#gallery figure").get_by_text("torn away").count()
    assert page.locator("#said").inner_text().startswith(f"{torn} of 10")
    page.screenshot(path=SHOTS / "saved-map.png", full_page=True)


def test_a_lasso_lists_what_lies_within(page, chart):
    box = page.locator("#map .nsewdrag").first.bounding_box()
    middle = box["x"] + box["width"] / 2
    corners = [(box["x"] + 2, box["y"] + 2), (middle, box["y"] + 2)]
    corners += [(middle, box["y"] + box["height"] - 2), (box["x"] + 2, box["y"] + box["height"] - 2)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in [*corners[1:], corners[0]]:
        page.mouse.move(*corner, steps=5)
    page.mouse.up()
    told(page, "chosen")
    within = [p.id for i, p in enumerate(chart.products) if where(page, chart, i)[0] < middle]
    assert 10 < len(within) < 110
    assert page.locator("#ids").input_value().split("\n") == within
    assert len(gallery(page)) == min(60, len(within))


def test_colours_words_and_queries(page, chart):
    page.select_option("#colour", label="cluster")
    names = page.evaluate("() => document.getElementById('map').data.map(trace => trace.name)")
    assert set(clusters(chart.products, chart.embeddings, 2).names) <= set(names)
    page.fill("#find", "title 88")
    page.keyboard.press("Enter")
    told(page, "1 titles have these words")
    assert gallery(page) == [chart.products[88].id]
    page.select_option("#query", label="q")
    told(page, "nearest to q are right answers")
    assert gallery(page) == [chart.products[i].id for i in chart.nearest_to_query(0)[0]]


def test_what_is_found_takes_the_lasso_away_and_stays_marked_in_other_colours(page, chart):
    marked = """() => { const map = document.getElementById("map");
        const own = (trace) => trace.selectedpoints ?? [];
        const chosen = map.data.flatMap((trace) => own(trace).map((n) => trace.customdata?.[n]));
        return [(map.layout.selections ?? []).length, chosen]; }"""
    test_a_lasso_lists_what_lies_within(page, chart)
    assert page.evaluate(marked)[0] == 1
    page.fill("#find", chart.products[40].id)
    page.keyboard.press("Enter")
    told(page, "neighbours are torn away")
    for name in ("cluster", "class"):
        page.select_option("#colour", label=name)
        count, chosen = page.evaluate(marked)
        assert (count, sorted(chosen)) == (0, sorted([40, *chart.neighbours(40)]))


def test_texts_are_texts_and_a_missing_picture_says_so(page, chart):
    page.fill("#find", chart.products[3].id)
    page.keyboard.press("Enter")
    page.locator("#gallery figcaption").first.wait_for()
    assert page.locator("#gallery figcaption").first.text_content() == chart.products[3].title
    page.fill("#find", chart.products[5].id)
    page.keyboard.press("Enter")
    page.locator("#gallery figure").first.get_by_text("no picture").wait_for()


def test_a_page_that_is_too_large_has_smaller_pictures_and_says_so(chart, tmp_path, monkeypatch):
    from coral_lab.widgets import saved_map

    sizes = {}
    for budget in (10**9, 120 * 1200, 10):
        monkeypatch.setattr(saved_map, "BUDGET", budget)
        pictures, note = saved_map._pictures(chart.products, None)
        sizes[note] = sum(map(len, pictures))
    assert next(iter(sizes)) == "Pictures have 64 pixels."
    assert list(sizes)[-1] == "120 products are too many for pictures."
    assert sorted(sizes.values(), reverse=True) == list(sizes.values())
    assert saved_map._pictures(chart.products, 0) == ([""] * 120, "Saved without pictures.")
    assert json.loads(json.dumps(saved_map._content(chart)))["k"] == 10
