"""A real browser judges: a query is built, its hits are marked by keys, the kernel is killed in the middle,
and nothing that was marked is lost; what comes out is measured.
"""

import math
import os
import re
import signal
from base64 import b64encode
from pathlib import Path

import nbformat
import pytest

from coral_lab.widgets import judged_hits
from tests.e2e.serving import NEEDS_CHROMIUM, READY, SHOTS, chromium, new_page, serving

pytestmark = NEEDS_CHROMIUM
CELLS = [
    """
import os
import numpy as np
import coral_lab as cl
from coral_lab.prompts import parts
from coral_lab.sources import Session
from coral_lab.widgets import QueryBench

class Oracle:
    \"\"\"Embeds an item by the letters of its texts.\"\"\"
    name, dim = "oracle", 64

    def embed(self, conversations):
        texts = ["".join(p for p in parts(c.item) if isinstance(p, str)) for c in conversations]
        counts = [np.bincount([ord(a) % 64 for a in text], minlength=64) for text in texts]
        rows = np.array(counts, np.float32)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

whole = cl.dataset("mini", "val")
shop = cl.Dataset("forty", whole.products[:40], ())
index = cl.index(Oracle(), shop.products, settings=cl.Settings(store="", progress=False))
print("process", os.getpid())
""",
    """
session = Session.open("ada.json", shop, judge="ada")
bench = QueryBench(index, session=session)
bench
""",
    """
test = session.test_set()
print(cl.evaluate(Oracle(), test.queries, test.products, settings=cl.Settings(store="", progress=False)))
""",
]
KEYS = "123123"
GRADES = {"1": 2, "2": 1, "3": 0}


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def opened(browser, folder, address):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / "judging.ipynb")
    page = new_page(browser, 1300, 1100)
    page.goto(address)
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for(timeout=180_000)
    return page


def run_cells(page, count):
    """Run the first cells, from a kernel that is ready."""
    page.wait_for_function(READY, timeout=180_000)
    run = "async () => { await window.jupyterapp.commands.execute('notebook:run-cell-and-select-next'); }"
    page.locator(".jp-Notebook .jp-CodeCell").first.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Escape")
    for _ in range(count):
        page.evaluate(run)


def progress(page, count, of=10):
    page.get_by_text(re.compile(rf"judged {count} of these {of}")).wait_for()


def said(page):
    return "\n".join(page.locator(".jp-OutputArea-output").all_inner_texts())


def judge(page, keys):
    page.locator(".coral-card").first.focus()
    for key in keys:
        page.keyboard.press(key)


@pytest.mark.parametrize("app", ["lab", pytest.param("notebook", marks=pytest.mark.slow)])
def test_marks_survive_a_killed_kernel_and_become_a_number(browser, tmp_path, app):
    if app == "notebook":
        pytest.importorskip("notebook")
    with serving(tmp_path, app) as (url, token):
        where = {"lab": "lab/tree", "notebook": "notebooks"}[app]
        page = opened(browser, tmp_path, f"{url}/{where}/judging.ipynb?token={token}")
        page.wait_for_function(READY, timeout=180_000)
        page.problems.clear()  # Notebook 7 has one of its own, about its settings
        run_cells(page, 2)
        page.locator(".coral-card").nth(9).wait_for()
        page.get_by_role("button", name="+ condition").click()
        page.get_by_role("button", name="Use").first.click()
        page.get_by_text("1 conditions").wait_for()
        judge(page, KEYS)  # a mark goes on to the next card
        progress(page, 6)
        page.screenshot(path=SHOTS / f"judging-{app}.png")
        ids = page.locator(".coral-card").evaluate_all("cards => cards.map(card => card.dataset.id)")
        os.kill(int(re.search(r"process (\d+)", said(page))[1]), signal.SIGKILL)
        page.locator(".jp-Dialog button.jp-mod-accept").click()  # "appears to have died. It will restart"
        run_cells(page, 2)
        progress(page, 6)
        shown = page.locator(".coral-card").evaluate_all(
            "cards => cards.map(card => [card.dataset.id, card.dataset.grade])"
        )
        names = {"1": "right", "2": "partly", "3": "wrong"}
        assert shown == [[id, names[key]] for id, key in zip(ids, KEYS, strict=False)] + [
            [id, ""] for id in ids[6:]
        ]
        for card, grade in zip(range(6, 10), ("wrong", "right", "wrong", "partly"), strict=True):
            page.locator(".coral-card").nth(card).locator(f"button[data-grade={grade}]").click()
        progress(page, 10)
        page.locator(".jp-Notebook .jp-CodeCell").last.locator(".jp-InputArea-editor").click()
        page.keyboard.press("Shift+Enter")
        page.get_by_text("95% intervals").wait_for()
        grades = [GRADES[key] for key in KEYS] + [0, 2, 0, 1]
        gains = [2**grade - 1 for grade in grades]
        dcg, best = (
            sum(gain / math.log2(rank + 2) for rank, gain in enumerate(own))
            for own in (gains, sorted(gains, reverse=True))
        )
        found = said(page)
        assert re.search(r"R@1 +1\.000", found), found
        assert re.search(rf" nDCG@10 +{dcg / best:.3f}", found), (dcg / best, found)
        assert re.search(r"judged@10 +1\.000", found), found
        assert page.problems == []
        page.close()


PAGE = """
<div id="here"></div>
<script type="module">
const { default: { render } } = await import("data:text/javascript;base64,SCRIPT");
const ids = ["a", "b", "c"];
const state = { query: "mine", marks: {}, cards: ids.map((id) => ({ id, label: id, html: id })) };
window.sent = [];
const heard = {};
const model = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; heard["change:" + name]?.(); },
  send: (content) => window.sent.push(content),
  on: (name, act) => { heard[name] = act; },
  off: () => {},
};
window.model = model;
render({ model, el: document.getElementById("here") });
</script>
"""


@pytest.fixture
def cards(browser):
    """The front end by itself, before a kernel that has not answered yet."""
    script = b64encode(Path(judged_hits.__file__).with_name("judged_hits.js").read_bytes()).decode()
    page = new_page(browser, 700, 500)
    page.set_content(PAGE.replace("SCRIPT", script))
    page.locator(".coral-card").nth(2).wait_for()
    yield page
    assert page.problems == []
    page.close()


def test_a_word_is_not_lost_to_the_mark_after_it(cards):
    cards.evaluate("model.set('marks', { a: { grade: 'right', word: '' } })")
    first = cards.locator(".coral-card").first
    first.locator("input").fill("other strap")
    first.locator("button[data-grade=wrong]").click()  # before the kernel has said that the word is kept
    asked = [(own["query"], own["grade"], own["word"]) for own in cards.evaluate("sent")]
    assert asked == [("mine", "right", "other strap"), ("mine", "wrong", "other strap")]


def test_a_key_that_is_held_down_judges_one_card(cards):
    cards.locator(".coral-card").first.focus()
    for _ in range(3):
        cards.keyboard.down("1")  # without a release: the second and third are repeats
    assert [own["id"] for own in cards.evaluate("sent")] == ["a"]


def test_a_mark_taken_back_is_to_be_judged_again(cards):
    button = cards.locator(".coral-card").first.locator("button[data-grade=right]")
    button.click()
    cards.evaluate("model.set('marks', { a: { grade: 'right', word: '' } })")
    button.click()
    cards.evaluate("model.set('marks', {})")
    cards.locator(".coral-card").nth(1).focus()
    cards.keyboard.press("2")
    cards.keyboard.press("3")
    assert cards.evaluate("document.activeElement.dataset.id") == "a"
