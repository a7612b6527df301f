"""A saved map: how large the page is, how long it takes to make, and to open and lasso in a browser.

python benchmarks/saved_map.py      3,000 products of MERIT-mini, and 50,000, whose pictures do not fit

Embeddings and places are drawn by chance around sixteen centres: what is measured is the page. Needs Debian's
chromium.
"""

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from table import HERE, keep, row

from coral_lab.mini.merit_mini import drawn
from coral_lab.widgets.neighbourhood_map import NeighbourhoodMap

sys.path.insert(0, str(HERE.parent))
from tests.e2e.serving import ARGUMENTS, CHROMIUM

RUNS = 3


def chart(count: int) -> NeighbourhoodMap:
    """Of more than 3,000 products, 3,000 again and again under other ids."""
    base = drawn("mini/test", [str(2_000_000 + i) for i in range(min(count, 3000))], 10).products
    products = [replace(base[i % len(base)], id=f"{i}") for i in range(count)]
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(16, 128))
    rows = centres[np.arange(count) % 16] + 0.5 * rng.normal(size=(count, 128))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    places = 4 * centres[np.arange(count) % 16, :2] + rng.normal(size=(count, 2))
    return NeighbourhoodMap(products, rows, places)


def in_browser(file: Path) -> tuple[float, float]:
    """Seconds until the map is drawn, and from the end of a lasso around half of it to its gallery."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_default_timeout(300_000)
        started = time.perf_counter()
        page.goto(file.as_uri())
        page.locator("body[data-ready]").wait_for()
        opened = time.perf_counter() - started
        box = page.locator("#map .nsewdrag").first.bounding_box()
        x, y, width, height = (box[name] for name in ("x", "y", "width", "height"))
        page.mouse.move(x + 2, y + 2)
        page.mouse.down()
        for corner in ((0.5, 0), (0.5, 1), (0, 1), (0, 0)):
            page.mouse.move(x + 2 + corner[0] * (width - 4), y + 2 + corner[1] * (height - 4), steps=3)
        started = time.perf_counter()
        page.mouse.up()
        page.locator("#said").filter(has_text="chosen").wait_for()
        lassoed = time.perf_counter() - started
        browser.close()
    return opened, lassoed


def measure(count: int, wanted: str) -> list[dict]:
    own, name = chart(count), f"{count:,} products"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "map.html"
        started = time.perf_counter()
        own.save(file)
        saved = time.perf_counter() - started
        opened, lassoed = zip(*(in_browser(file) for _ in range(RUNS)), strict=True)
        size = file.stat().st_size / 1e6
    return [
        row(f"{name}: MB", [size], wanted),
        row(f"{name}: save, s", [saved]),
        row(f"{name}: open, s", opened),
        row(f"{name}: lasso, s", lassoed),
    ]


if __name__ == "__main__":
    for count, side, wanted in ((3000, None, "≤ 8"), (50_000, None, ""), (50_000, 0, "")):
        print(
            keep("saved_map", measure(count, side, wanted))[["what", "median", "wanted"]].to_string(
                index=False
            )
        )
