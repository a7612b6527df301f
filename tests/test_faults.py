"""Faults that users of other tools met: threads, missing pictures, prices, ids with blanks, late errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from coral_lab import Product, Query, Settings, cli, encode, index, load
from coral_lab.cli import learning, measuring
from coral_lab.errors import ItemError
from coral_lab.results import Gallery
from coral_lab.study import geometry
from coral_lab.widgets import AttributionView, NeighbourhoodMap, QueryBench

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def pool(random_model, shop):
    return index(random_model, shop.products[:60])


def test_searches_from_eight_threads_are_those_of_one(pool, shop):
    """A short version of the thousand below: the network's hooks and caches are of one call."""
    asked = [shop.queries[i % 12] for i in range(96)]
    expected = {query.id: [hit.product.id for hit in pool.search(query)] for query in shop.queries[:12]}
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(pool.search, asked))
    assert [[hit.product.id for hit in hits] for hits in found] == [expected[query.id] for query in asked]


@pytest.mark.slow
def test_a_thousand_searches_and_encodes_from_eight_threads(pool, shop, random_model):
    one = encode(random_model, shop.products[:40])
    expected = {
        query.id: [(hit.product.id, hit.score) for hit in pool.search(query)] for query in shop.queries[:40]
    }
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(pool.search, [shop.queries[i % 40] for i in range(1000)]))
        rows = list(threads.map(lambda i: encode(random_model, shop.products[i % 40]), range(200)))
    for i, hits in enumerate(found):
        wanted = expected[shop.queries[i % 40].id]
        assert [hit.product.id for hit in hits] == [id for id, _ in wanted]
        np.testing.assert_allclose([hit.score for hit in hits], [score for _, score in wanted], atol=1e-5)
    for i, row in enumerate(rows):
        np.testing.assert_allclose(row[0], one[i % 40], atol=1e-5)


@pytest.fixture
def gone(shop, tmp_path, random_model):
    """A pool of ten products with files, one of which is removed after indexing."""
    products = []
    for product in shop.products[:10]:
        product.picture.save(tmp_path / f"{product.id}.png")
        products.append(replace(product, image=tmp_path / f"{product.id}.png"))
    found = index(random_model, products)
    products[3].image.unlink()
    return found


def test_one_missing_picture_leaves_the_others_and_says_why(gone):
    page = Gallery(gone.products)._repr_html_()
    assert page.count("<img") == 9
    assert "does not exist; check the path" in page
    query = Query("q", gone.products[0].class_name, text=" in red.")
    assert gone.search(query, 10)._repr_html_().count("<img") == 9
    bench = QueryBench(gone, query)
    assert bench.gallery.value.count("<img") == 9
    bench._ask()
    cards = "".join(card.value for card in bench.picker.pictures)
    assert (cards.count("<img"), cards.count("no picture: ")) == (9, 1)


def test_a_map_and_an_attribution_view_bear_it_too(gone):
    chart = NeighbourhoodMap(gone.products, gone.embeddings, np.random.default_rng(0).random((10, 2)), k=3)
    chart.select(range(10))
    assert chart.gallery.value.count("<img") == 9
    bench = QueryBench(gone, Query("q", gone.products[0].class_name, text="."))
    bench.add(gone.products[0], "color")
    assert (
        AttributionView(gone, bench.query, k=10).cells.value.count("<img") == 8 + 1
    )  # a reference is no hit


def test_prices_are_no_formulas(random_model):
    """MathJax heeds the class mathjax_ignore on whatever holds a title."""
    product = Product("p", "Was $25.99 now $12.50", class_name="bag")
    hits = index(random_model, [product]).search(Query("q", "bag", text=" for $5 or $6."))
    for page in (product._repr_html_(), hits.query._repr_html_(), hits._repr_html_()):
        outside = re.sub(
            r'<div class="mathjax_ignore".*?</div>\s*(?=<div class|$)', "", page, flags=re.DOTALL
        )
        assert "$" in page
        assert "$" not in outside


@pytest.mark.parametrize("bad", ["a b", "tab\there", "line\nbreak", "\u00a0"])
def test_ids_that_trec_cannot_hold_are_refused_before_a_line_is_written(random_model, shop, tmp_path, bad):
    answer = Product(f"p{bad}", "a bag")
    file = tmp_path / "run.trec"
    pool = index(random_model, [answer, *shop.products[:10]])
    with pytest.raises(ItemError, match="has white space"):
        pool.evaluate([Query("q", "bag", positives=(answer.id,))]).write_trec(file)
    twice = [Query("same", "bag", positives=(shop.products[0].id,))] * 2
    with pytest.raises(ItemError, match="'same': its id stands twice"):
        index(random_model, shop.products[:10]).evaluate(twice).write_trec(file)
    assert not file.exists()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_map_of_too_few_rows_says_how_many_are_needed(count):
    rows = np.eye(4, dtype=np.float32)[:count]
    with pytest.raises(ValueError, match=f"{count} rows make no map; give at least 4"):
        geometry.umap(rows)
    with pytest.raises(ValueError, match=f"{count} rows make no map"):
        geometry.aligned_umaps([rows, rows])


@pytest.mark.parametrize("k", [0, 10, 15, 19])
def test_trustworthiness_is_refused_where_it_is_not_defined(k):
    rows = np.random.default_rng(0).random((20, 5)).astype(np.float32)
    with pytest.raises(ValueError, match=f"k is {k} for 20 rows"):
        geometry.trustworthiness(rows, rows[:, :2].astype(float), k)
    assert 0 <= geometry.trustworthiness(rows, rows[:, :2].astype(float), 9) <= 1


LATE = [
    ["evaluate", "--json", "folder"],
    ["evaluate", "--json", "file/below.json"],
    ["evaluate", "--run", "folder"],
    ["encode", "--out", "folder.npy"],
    ["report", "--out", "file/below/report.html"],
    ["evaluate", "--format", "sqe"],
    ["evaluate", "--device", "gpu"],
    ["evaluate", "--dtype", "float8"],
]


@pytest.mark.parametrize("arguments", LATE, ids=" ".join)
def test_what_cannot_be_is_told_in_a_line_before_anything_is_encoded(
    arguments, tmp_path, monkeypatch, capsys
):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    for place in ("coral_lab.retrieval.encode_all", "coral_lab.evaluation.encode_all"):
        monkeypatch.setattr(place, lambda *_, **__: pytest.fail("it was encoded"))
    assert cli.main([*arguments, "--model", "mini", "--split", "val"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) <= 300
    assert said.startswith("coral-lab: ")


@pytest.mark.parametrize("name", ["run.1", "run"])
def test_a_folder_is_a_folder_whatever_its_name(name, tmp_path, monkeypatch):
    (tmp_path / name).mkdir()
    asked = []
    monkeypatch.setattr(learning, "mini", asked.append)
    assert cli.main(["mini", "--stage", "base", "--out", str(tmp_path / name)]) == 0
    assert len(asked) == 1


def test_a_full_disk_is_one_line(monkeypatch, capsys):
    def full(_):
        raise OSError(28, "No space left on device", "out.json")

    monkeypatch.setattr(measuring, "demo", full)
    assert cli.main(["demo"]) == 2
    assert "No space left on device" in capsys.readouterr().err


def test_a_terminal_that_knows_no_thai_gets_what_it_can_write():
    code = (
        "from coral_lab import cli\nfrom coral_lab.cli import measuring\n"
        "measuring.demo = lambda _: print('\u0e40\u0e2a\u0e37\u0e49\u0e2d top')\n"
        "raise SystemExit(cli.main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONIOENCODING": "cp1252"}, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == b"top"


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "1000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, None), ({"GOMP_SPINCOUNT": "7"}, "7")],
)
def test_threads_spin_shortly_unless_told(given, expected):
    code = "import coral_lab, json, os; print(json.dumps(os.environ.get('GOMP_SPINCOUNT')))"
    without = {k: v for k, v in os.environ.items() if k not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    done = subprocess.run([sys.executable, "-c", code], env=without | given, capture_output=True, check=True)
    assert json.loads(done.stdout) == expected


READ_ONLY = """
import logging, sys
import numpy as np
import coral_lab as cl
logging.basicConfig(format="%(message)s")
shop, store = cl.dataset("mini"), sys.argv[1]
model = cl.load("mini")
kept = cl.encode(model, shop.products[:12], settings=cl.Settings(store=store))
new = cl.encode(model, shop.products[:16], settings=cl.Settings(store=store))
assert (new[:12] == kept).all() and np.isfinite(new).all()
print(len(cl.open_store(store, model)))
try:
    cl.open_store(store, model).add(shop.products[:16])
except cl.errors.StoreError as error:
    print(error)
"""


@pytest.mark.skipif(not shutil.which("setpriv") and os.getuid() == 0, reason="root may write everywhere")
def test_a_store_that_may_not_be_written_is_read_and_nothing_is_kept(shop, tmp_path):
    store = tmp_path / "store"
    encode(load("mini"), shop.products[:12], settings=Settings(store=str(store)))
    before = sorted(store.rglob("*"))
    folders = [store, *(path for path in before if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    as_others = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    try:
        tried = subprocess.run(
            [*as_others, sys.executable, "-c", READ_ONLY, str(store)],
            capture_output=True,
            text=True,
            cwd=ROOT,
            timeout=300,
        )
        assert tried.returncode == 0, tried.stderr
        assert tried.stdout.startswith("12\n")
        assert "cannot be written; name another folder" in tried.stdout
        assert tried.stderr.count("embeddings made now are not kept") == 2
        assert sorted(store.rglob("*")) == before
    finally:
        for folder in folders:
            folder.chmod(0o755)


READ_ONLY_PACKAGES = """
import tempfile
import numba.core.caching as caching
import numpy as np

ensure = caching._CacheLocator.ensure_cache_path
def refuse(self):
    if not self.get_cache_path().startswith(tempfile.gettempdir()):
        raise PermissionError(self.get_cache_path())
    ensure(self)
caching._CacheLocator.ensure_cache_path = refuse
from coral_lab.study.geometry import umap
print(umap(np.eye(16, dtype=np.float32)).shape, caching.config.CACHE_DIR)
"""


@pytest.mark.slow
def test_umap_where_neither_packages_nor_home_can_be_written():
    tried = subprocess.run(
        [sys.executable, "-c", READ_ONLY_PACKAGES], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert tried.returncode == 0, tried.stderr
    shape, _, place = tried.stdout.strip().rpartition(" ")
    assert shape == "(16, 2)"
    assert not Path(place).exists()


def test_compiled_functions_that_can_be_kept_nowhere_get_a_folder(monkeypatch):
    """A short version of the one above: numba refuses once, and is asked again."""
    import numba

    answers = [RuntimeError("cannot cache function 'rdist': no locator available for file 'umap.py'"), "umap"]

    def imported(name):
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(geometry, "import_module", imported)
    monkeypatch.setattr(numba.config, "CACHE_DIR", "")
    monkeypatch.setenv("NUMBA_CACHE_DIR", "")
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    assert geometry._umap() == "umap"
    assert Path(numba.config.CACHE_DIR).is_dir()
    answers[:] = [RuntimeError("something else")]
    with pytest.raises(RuntimeError, match="something else"):
        geometry._umap()
