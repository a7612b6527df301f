"""A real browser runs notebook 05 in JupyterLab: the bench, the map and the lasso do what they say, without
an error.

Screenshots stay under build/screenshots.
"""

import re

import jupytext
import nbformat
import pytest

from tests.e2e.serving import NEEDS_CHROMIUM, READY, SHOTS, chromium, new_page, serving
from tests.e2e.test_notebooks import with_parameters

pytestmark = NEEDS_CHROMIUM
SMALL = {"MODELS": ["mini", "mini-base"], "POOL": 300, "MAPPED": 150}
NAME = "05_retrieval_neighbourhoods"
DENSITY = """
import numpy as np
from coral_lab.metrics import Estimate
from coral_lab.study.large_maps import LargeMap
from coral_lab.widgets import DensityMap
places = np.random.default_rng(0).standard_normal((20_000, 2)).astype(np.float32)
ids, none = np.array([f"p{n}" for n in range(len(places))]), Estimate(0.5, 0.4, 0.6, 9)
crowd = LargeMap(ids, places, np.ones(len(ids), bool), none, none, 0.01)
DensityMap(crowd, lambda ids: [cl.Product(id, f"the title of {id}") for id in ids])
"""
"""A cell more: a map that is too large for points."""


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """JupyterLab with a copy of the notebook."""
    folder = tmp_path_factory.mktemp("lab")
    notebook = with_parameters(jupytext.read(f"notebooks/{NAME}.py"), SMALL)
    notebook.cells.append(nbformat.v4.new_code_cell(DENSITY))
    nbformat.write(notebook, folder / f"{NAME}.ipynb")
    with serving(folder) as (url, token):
        yield f"{url}/lab/tree/{NAME}.ipynb?token={token}"


@pytest.fixture(scope="module")
def page(address):
    """The notebook with all cells run; `page.problems` collects what the browser's console calls an error."""
    with chromium() as browser:
        page = new_page(browser, 1400, 1000)
        page.goto(address)
        page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=180_000)
        page.wait_for_function(READY, timeout=180_000)
        page.evaluate("async () => { await window.jupyterapp.commands.execute('notebook:run-all-cells'); }")
        yield page


def no_error_is_shown(page):
    assert page.locator('[role="alert"]').all_inner_texts() == []
    assert page.locator('.jp-RenderedText[data-mime-type*="stderr"]').all_inner_texts() == []
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    assert page.problems == []


def test_a_query_is_built_reordered_and_compared_with_the_pinned_one(page):
    bench = page.locator(".widget-vbox", has=page.get_by_role("button", name="+ condition")).first
    gallery = bench.locator(".widget-html").last
    bench.scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "bench.png")
    first = gallery.inner_html()
    bench.get_by_role("button", name="+ condition").click()
    bench.get_by_role("button", name="Use").first.click()
    page.wait_for_function("([e, old]) => e.innerHTML !== old", arg=[gallery.element_handle(), first])
    bench.get_by_text("4 conditions").wait_for()
    bench.get_by_role("button", name="Pin", exact=True).click()
    page.wait_for_function("e => /\\d =/.test(e.innerText)", arg=gallery.element_handle())
    second = gallery.inner_html()
    bench.get_by_role("button", name="↓ down").first.click()
    page.wait_for_function("([e, old]) => e.innerHTML !== old", arg=[gallery.element_handle(), second])
    assert re.search(r"▲\d|▼\d|new", gallery.inner_text())
    gallery.scroll_into_view_if_needed()
    page.screenshot(path=SHOTS / "bench-pinned.png")
    no_error_is_shown(page)


def test_a_lasso_on_the_map_fills_the_gallery(page):
    plot = page.locator(".js-plotly-plot", has=page.locator(".gl-canvas")).first
    plot.scroll_into_view_if_needed()
    drag = plot.locator(".nsewdrag").first
    before = plot.screenshot(path=SHOTS / "map.png")
    colours = page.evaluate(
        """e => { const found = new Set(); for (const canvas of e.querySelectorAll('canvas')) {
             const copy = document.createElement('canvas');
             copy.width = canvas.width; copy.height = canvas.height;
             if (!canvas.width) continue; const c = copy.getContext('2d'); c.drawImage(canvas, 0, 0);
             const data = c.getImageData(0, 0, copy.width, copy.height).data;
             for (let i = 0; i < data.length; i += 4)
                 if (data[i + 3]) found.add(data[i] + ',' + data[i + 1] + ',' + data[i + 2]); }
             return found.size; }""",
        plot.element_handle(),
    )
    assert colours > 3, "the WebGL canvas is blank"
    box = drag.bounding_box()
    corners = [(0.05, 0.05), (0.95, 0.05), (0.95, 0.95), (0.05, 0.95), (0.05, 0.06)]
    path = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in corners]
    page.mouse.move(*path[0])
    page.mouse.down()
    for x, y in path[1:]:
        page.mouse.move(x, y, steps=12)
    page.mouse.up()
    page.get_by_text(re.compile(r"^\d+ chosen, the first 24 shown")).first.wait_for()
    page.screenshot(path=SHOTS / "map-lasso.png")
    assert plot.screenshot() != before
    no_error_is_shown(page)


def test_a_map_of_many_is_counted_anew_where_one_zooms_and_few_are_drawn(page):
    page.get_by_text("20,000 products in sight; zoom in").wait_for()
    plot = page.locator(".js-plotly-plot", has=page.locator(".heatmaplayer")).last
    plot.scroll_into_view_if_needed()
    plot.screenshot(path=SHOTS / "density.png")
    box = plot.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 0.47 * box["width"], box["y"] + 0.46 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.53 * box["width"], box["y"] + 0.54 * box["height"], steps=8)
    page.mouse.up()
    page.get_by_text(re.compile("products in sight; click one")).wait_for()
    point = plot.locator(".scatterlayer .point").first
    point.wait_for()
    plot.screenshot(path=SHOTS / "density-zoomed.png")
    at = point.bounding_box()
    page.mouse.move(at["x"] + at["width"] / 2, at["y"] + at["height"] / 2)
    page.mouse.down()
    page.mouse.up()
    page.get_by_text(re.compile(r"the title of p\d+")).first.wait_for()
    no_error_is_shown(page)
