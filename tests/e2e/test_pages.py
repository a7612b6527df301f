"""Pages fetch nothing and run nothing, whatever titles, ids and names bring along: a browser opens them and
counts.
"""

import base64
from dataclasses import replace
from pathlib import Path

import nbconvert
import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from coral_lab import Condition, Product, Query, Settings, index
from coral_lab.metrics import estimate
from coral_lab.mini.demo import _body
from coral_lab.query import Dataset
from coral_lab.replication.report_page import report
from coral_lab.replication.reproducing import Matrix, reproduce
from coral_lab.results import page as whole_page
from coral_lab.study import plots
from coral_lab.widgets import NeighbourhoodMap
from tests.e2e.serving import ARGUMENTS, CHROMIUM

pytestmark = pytest.mark.skipif(not Path(CHROMIUM).exists(), reason="needs Debian's chromium")

ELSEWHERE = "http://198.51.100.7/x"  # of a range that is nobody's
BRINGS = [
    f"<img src={ELSEWHERE} onerror=document.title='ran'>",
    f"<script>document.title='ran';fetch('{ELSEWHERE}')</script>",
    f"</script><script src={ELSEWHERE}></script>",
    f"\"'><iframe src={ELSEWHERE}></iframe>",
    f"<a href='{ELSEWHERE}' style='background:url({ELSEWHERE})'>red</a>",
    f"<style>@import '{ELSEWHERE}';</style>",
    f"<link rel=stylesheet href={ELSEWHERE}>&lt;b&gt;",
    f"$\\href{{{ELSEWHERE}}}{{x}}$ %{{x}} {{{{7*7}}}} javascript:document.title='ran'",
    f"<svg onload=document.title='ran'><image href={ELSEWHERE}>",
    f"<meta http-equiv=refresh content='0;url={ELSEWHERE}'>",
]


@pytest.fixture(scope="module")
def hostile():
    """Ten products and queries, every text of which brings something."""
    products = [
        Product(
            f"{number}{text}",
            text,
            None,
            BRINGS[number % 2],
            BRINGS[2 + number % 3],
            BRINGS[5 + number % 2],
            {text: (text,), BRINGS[0]: (BRINGS[number],)},
        )
        for number, text in enumerate(BRINGS)
    ]
    queries = [
        Query(
            f"q{own.id}",
            own.class_name,
            tuple(Condition(BRINGS[0], other, BRINGS[1]) for other in (own, products[number - 1])),
            own.title,
            (products[number - 2].id,),
        )
        for number, own in enumerate(products)
    ]
    return Dataset(BRINGS[0], products, queries)


@pytest.fixture(scope="module")
def pool(random_model, hostile):
    return index(replace(random_model, name=BRINGS[0]), hostile.products)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)


def looked_at(browser, file: Path):
    """The page, after it has settled: nothing was asked for, nothing of others ran, no link leads there."""
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_timeout(1500)
    assert [url for url in asked if not url.startswith(("data:", "blob:", file.as_uri()))] == []
    assert page.title() != "ran"
    assert page.evaluate(f"document.querySelectorAll(\"[href*='{ELSEWHERE}']\").length") == 0
    assert page.evaluate(f"document.querySelectorAll(\"[src*='{ELSEWHERE}']\").length") == 0
    return page


def test_a_report_of_hostile_texts_fetches_and_runs_nothing(browser, pool, hostile, tmp_path):
    file = tmp_path / "report.html"
    report(pool, hostile, file, sensitivity=4, galleries=2, command=BRINGS[1])
    page = looked_at(browser, file)
    assert page.locator(".js-plotly-plot .main-svg").count() > 4  # the figures are drawn all the same
    page.screenshot(path="build/screenshots/hostile-report.png", full_page=True)
    assert "<script>document.title" in page.inner_text("body")  # shown as the text it is


def test_what_reproduce_writes_of_hostile_texts_fetches_and_runs_nothing(
    browser, random_folder, hostile, tmp_path
):
    matrix = Matrix(str(random_folder), choices=("references", "wording"), device="cpu")
    reproduce(matrix, hostile, tmp_path / "out", Settings(progress=False), BRINGS[1])
    page = looked_at(browser, tmp_path / "out/reproduce.html")
    assert page.locator(".js-plotly-plot .main-svg").count() > 4
    page.screenshot(path="build/screenshots/hostile-reproduce.png", full_page=True)
    assert "<script>document.title" in page.inner_text("body")


def test_a_demo_page_of_hostile_texts_fetches_and_runs_nothing(browser, pool, hostile, tmp_path):
    file = tmp_path / "demo.html"
    body = _body(pool.search(hostile.queries[0]), pool.evaluate(hostile.queries))
    file.write_text(whole_page(BRINGS[0], body), encoding="utf-8")
    looked_at(browser, file)


def shown(thing) -> list:
    """What a notebook keeps of a thing that is shown, as the kernel would have it."""
    if hasattr(thing, "to_image"):
        data = {"application/vnd.plotly.v1+json": thing.to_plotly_json(), "text/html": thing.to_html()}
        data["image/png"] = base64.b64encode(b"\x89PNG").decode()
    else:
        data = {"text/html": thing if isinstance(thing, str) else thing._repr_html_()}
    return [new_output("display_data", {"text/plain": repr(thing)[:500], **data})]


def test_a_notebooks_page_of_hostile_texts_fetches_and_runs_nothing(browser, pool, hostile, tmp_path):
    result = pool.evaluate(hostile.queries)
    places = np.random.default_rng(0).normal(size=(len(hostile.products), 2))
    asked = pool.encode(hostile.queries[:3])
    chart = NeighbourhoodMap(
        hostile.products,
        pool.embeddings,
        places,
        queries=hostile.queries[:3],
        query_embeddings=asked,
        title=BRINGS[4],
    )
    frozen = chart.static()
    things = [
        *hostile.products[:4],
        *hostile.queries[:4],
        pool.search(hostile.queries[0]),
        pool.model,
        result.table(),
        frozen.figure,
        frozen.gallery,
        plots.bars(
            {text: estimate(result.per_query["R@1"].to_numpy()) for text in BRINGS}, BRINGS[4], BRINGS[4]
        ),
        plots.matrix(pd.DataFrame(0.5, BRINGS, BRINGS), BRINGS[4]),
        plots.curves({BRINGS[4]: pd.DataFrame({"step": [1, 2], BRINGS[4]: [1.0, 0.5]})}),
    ]
    notebook = new_notebook(cells=[new_code_cell("show()", outputs=shown(thing)) for thing in things])
    exporter = nbconvert.HTMLExporter(extra_template_basedirs=["notebooks"], template_name="offline")
    body, _ = exporter.from_notebook_node(notebook)
    (tmp_path / "notebook.html").write_text(body, encoding="utf-8")
    looked_at(browser, tmp_path / "notebook.html")


@pytest.mark.parametrize("file", sorted(Path("notebooks").glob("[0-9]*.ipynb")), ids=lambda file: file.stem)
def test_every_notebooks_page_fetches_nothing(browser, file, tmp_path):
    exporter = nbconvert.HTMLExporter(extra_template_basedirs=["notebooks"], template_name="offline")
    notebook = nbformat.read(file, 4)
    body, _ = exporter.from_notebook_node(notebook)
    (tmp_path / "page.html").write_text(body, encoding="utf-8")
    page = looked_at(browser, tmp_path / "page.html")
    assert page.locator("script").count() == 0
    assert page.locator("h1").count() >= 1
    solutions = sum("solution" in cell.metadata.get("tags", []) for cell in notebook.cells)
    assert page.locator("details").count() == solutions
    assert not any(own.is_visible() for own in page.locator("details .jp-Cell").all())
