"""A store is measured as a pool in memory is; and what its index misses is said beside."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest

import coral_lab as cl
from coral_lab import Condition, Product, Query, Settings
from coral_lab.errors import ItemError, StoreError
from coral_lab.metrics import DEPTH
from coral_lab.store import approximate, evaluating

ROWS = 600


class Random:
    """A vector of its own for every text: no two are as near to a query."""

    name, dim, fingerprint = "random", 16, "1"

    def embed(self, conversations):
        seeds = [zlib.crc32(own.text.encode()) for own in conversations]
        return [np.random.default_rng(seed).standard_normal(self.dim) for seed in seeds]


class Other(Random):
    fingerprint = "2"


PRODUCTS = [Product(f"it's {i}", f"product {i}", class_name="thing") for i in range(ROWS)]
QUERIES = [
    Query(f"q{i}", "thing", text=f"query {i}", positives=(PRODUCTS[7 * i].id, PRODUCTS[7 * i + 1].id))
    for i in range(40)
] + [
    Query("shown", "thing", (Condition("color", PRODUCTS[3]),), positives=(PRODUCTS[4].id,)),
    Query("asks for itself", "thing", (Condition("color", PRODUCTS[5]),), positives=(PRODUCTS[5].id,)),
]
QUIET = Settings(progress=False)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    found = cl.open_store(tmp_path_factory.mktemp("store"), Random())
    found.add(PRODUCTS, QUIET)
    return found


@pytest.fixture
def indexed(tmp_path, monkeypatch):
    monkeypatch.setattr(approximate, "FROM", 100)
    found = cl.open_store(tmp_path, Random())
    found.add(PRODUCTS, QUIET)
    return found


def rankings(result) -> list[list[str]]:
    return [[id for id in row if id] for row in result.ids[result.ranked]]


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("k", [DEPTH, 50, ROWS + 5])
def test_a_store_is_measured_as_a_pool_is(store, k, exclude):
    pool = cl.index(Random(), PRODUCTS, settings=QUIET)
    ours = store.evaluate(QUERIES, k, exclude_references=exclude)
    theirs = pool.evaluate(QUERIES, k=k, exclude_references=exclude)
    np.testing.assert_allclose(ours.scores, theirs.scores, rtol=1e-6)
    assert ours.metrics == theirs.metrics
    assert ours.met_by_first() == theirs.met_by_first()
    assert (ours.pool, ours.note, repr(ours)) == (ROWS, "", repr(theirs))
    if k > ROWS:
        shown, itself = rankings(ours)[-2:]
        assert (PRODUCTS[3].id in shown) != exclude
        assert PRODUCTS[5].id in itself, "a positive is never left out"


def test_only_what_was_found_is_read(store, tmp_path):
    result = store.evaluate(QUERIES[:3], DEPTH)
    assert DEPTH <= len(result.products) <= 3 * DEPTH + 6 < result.pool
    result.write_json(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["pool"] == ROWS


def test_judged_products_count_where_nobody_finds_them(store):
    judged = [
        replace(query, relevance={query.positives[0]: 2, PRODUCTS[-1].id: 1, "not there": 3})
        for query in QUERIES[:5]
    ]
    pool = cl.index(Random(), PRODUCTS, settings=QUIET)
    ours, theirs = store.evaluate(judged, DEPTH), pool.evaluate(judged, k=DEPTH)
    assert ours.metrics == theirs.metrics
    assert ours.note == theirs.note != ""


def test_many_names_are_asked_for_in_parts(store, monkeypatch):
    whole = store.evaluate(QUERIES, DEPTH)
    monkeypatch.setattr(evaluating, "AT_ONCE", 7)
    assert rankings(store.evaluate(QUERIES, DEPTH)) == rankings(whole)


def test_an_index_that_looks_everywhere_finds_what_exact_search_does(indexed):
    index = indexed.make_index(1.0, "ivf-flat", QUERIES)
    assert index.recall.mean == 1
    exact, found = indexed.evaluate(QUERIES, DEPTH), indexed.evaluate(QUERIES, DEPTH, approximate=True)
    assert found.metrics == exact.metrics
    assert "ivf-flat" in found.note
    assert f"by {len(QUERIES)} of these queries, recall@10 1.000" in found.note
    assert found.note in repr(found)


def test_what_an_index_misses_is_said(indexed, monkeypatch):
    found = indexed.make_index(0.9, "ivf-flat", QUERIES)
    approximate.save(indexed.table, replace(found, effort=approximate.Effort(1, 1)))
    found, exact = indexed.evaluate(QUERIES, 50, approximate=True), indexed.evaluate(QUERIES, 50)
    right = [set(row) for row in rankings(exact)]
    shares = [len({*own} & best) / 50 for own, best in zip(rankings(found), right, strict=True)]
    told = float(found.note.rpartition("recall@50 ")[2].split()[0])
    assert told < 1
    assert told == pytest.approx(np.mean(shares), abs=0.02), "of the rows before references were left out"
    monkeypatch.setattr(evaluating, "COMPARED", 5)
    assert "by 5 of these queries" in indexed.evaluate(QUERIES, 50, approximate=True).note


def test_what_cannot_be_measured_is_said(store):
    with pytest.raises(StoreError, match=r"no index; make_index\(\)"):
        store.evaluate(QUERIES, approximate=True)
    with pytest.raises(ValueError, match="depth 9; give at least 10"):
        store.evaluate(QUERIES, 9)
    with pytest.raises(ValueError, match="0 queries"):
        store.evaluate([])
    stranger = replace(QUERIES[0], positives=("nowhere",))
    with pytest.raises(ItemError, match="positives is in the pool"):
        store.evaluate([stranger, *QUERIES])
    kept = store.evaluate([stranger, *QUERIES], settings=Settings(on_error="skip", progress=False))
    assert (len(kept.queries), len(kept.skipped)) == (len(QUERIES), 1)
    with pytest.raises(StoreError, match="encode something into it first"):
        cl.open_store(store.uri, Other()).evaluate(QUERIES)
