"""An index owns its model, its format and its settings: nothing that searches or measures can use two."""

import json

import numpy as np
import pytest

from coral_lab import Condition, Product, Query, Settings, evaluate, index, load, retrieval
from coral_lab.errors import ItemError, ModelMismatchError
from coral_lab.retrieval import Index
from coral_lab.study.sweeps import attribution, sweep
from coral_lab.widgets.query_bench import QueryBench


@pytest.fixture(scope="module")
def products(shop):
    return shop.products[:120]


@pytest.fixture(scope="module")
def queries(shop, products):
    ids = {product.id for product in products}
    return [query for query in shop.queries if ids & set(query.positives)][:6]


@pytest.fixture(scope="module")
def captioned(random_model, products) -> Index:
    return index(random_model, products, format="caption")


@pytest.fixture(scope="module")
def plain(random_model, products) -> Index:
    return index(random_model, products)


def seen(hits):
    return [(hit.product.id, hit.score) for hit in hits]


def test_what_searches_takes_the_index_s_format_unless_told(captioned, plain, queries):
    for query in queries[:2]:
        assert seen(captioned.search(query)) == seen(plain.search(query, format="caption"))
        assert seen(captioned.search(query)) != seen(captioned.search(query, format="seq"))
        assert seen(captioned.search(query, format="seq")) == seen(plain.search(query))


def test_what_measures_does_too(random_model, captioned, plain, queries):
    own, told = captioned.evaluate(queries), plain.evaluate(queries, "caption")
    called = evaluate(random_model, queries, captioned)
    for result in (own, told, called):
        assert result.format == "caption"
        np.testing.assert_array_equal(result.ranked, own.ranked)
    assert plain.evaluate(queries).format == "seq"
    assert (plain.evaluate(queries).scores != own.scores).any()


def test_sweeps_and_attribution_do_too(captioned, plain, queries):
    table = sweep(captioned, queries[:2], ())
    assert set(table["format"]) == {"caption"}
    told = sweep(plain, queries[:2], (), formats={"caption": "caption"})
    assert table["score"].tolist() == told["score"].tolist()
    own = attribution(captioned, queries[0], 3)
    assert own.drop(columns="value").equals(
        attribution(plain, queries[0], 3, format="caption").drop(columns="value")
    )
    hits = captioned.search(queries[0], 3)
    assert own["id"].unique().tolist() == [hit.product.id for hit in hits]


def test_another_format_in_the_bench_keeps_the_prepared_pool(plain, queries, monkeypatch):
    prepared, prepare = [], retrieval.prepare
    monkeypatch.setattr(retrieval, "prepare", lambda rows: prepared.append(rows) or prepare(rows))
    fresh = Index(plain.model, plain.products, plain.embeddings)
    bench = QueryBench(fresh, queries[0])
    for format in ("caption", "cat", "seq"):
        bench.format.value = format
    assert len(bench.steps) == 4
    assert len(prepared) == 1


def test_a_bench_starts_in_its_index_s_format(captioned, queries):
    bench = QueryBench(captioned, queries[0])
    assert bench.format.value == "caption"
    assert seen(bench.hits) == seen(captioned.search(queries[0], 10))


def test_an_index_of_another_model_is_refused_by_name(random_folder, captioned, queries):
    other = load("mini")
    with pytest.raises(ModelMismatchError, match=r"the index was made by '.*' and the model is 'mini'"):
        evaluate(other, queries, captioned)
    again = load(random_folder)  # another object, the same weights: nothing can go wrong
    assert evaluate(again, queries, captioned).format == "caption"
    again.network.lm_head.weight.data[0, 0] += 1
    with pytest.raises(ModelMismatchError):
        evaluate(again, queries, captioned)


@pytest.mark.parametrize("format", ["sqe", "Seq", ""])
def test_an_unknown_format_is_told_before_anything_is_encoded(random_model, products, format, monkeypatch):
    monkeypatch.setattr(retrieval, "encode_all", lambda *_, **__: pytest.fail("it was encoded"))
    with pytest.raises(ValueError, match=r"use one of seq, cat, caption"):
        index(random_model, products, format=format)


@pytest.mark.parametrize("values", [{"batch_size": 0}, {"on_error": "ignore"}])
def test_settings_that_cannot_be_are_refused_where_they_are_made(values):
    with pytest.raises(ValueError, match="use 1 or more, and raise or skip"):
        Settings(**values)


def test_what_is_skipped_is_left_out_of_the_measures_and_listed(random_model, products, queries, tmp_path):
    """A query's reference that cannot be read, and a query whose only right answer could not."""
    broken = Product("broken", "a bag", b"no picture", "bag")
    unreadable = Query("unreadable", "bag", (Condition("color", broken),), positives=(products[0].id,))
    unanswered = Query("unanswered", "bag", text="a bag", positives=("broken",))
    skip = Settings(on_error="skip")
    pool = index(random_model, [*products, broken], settings=skip)
    assert [error.item for error in pool.skipped] == ["product broken"]
    result = pool.evaluate([*queries, unreadable, unanswered])
    assert {error.item for error in result.skipped} == {"query unreadable", "query unanswered"}
    expected = pool.evaluate(queries)
    np.testing.assert_array_equal(result.ranked, expected.ranked)
    result.write_json(tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["n_queries"] == len(queries)
    assert len(written["skipped"]) == 2
    assert "2 queries skipped" in repr(result)
    assert "1 products skipped" in repr(result)
    assert [said.partition(":")[0] for said in written["skipped_products"]] == ["product broken"]
    with pytest.raises(ItemError, match="query unanswered"):
        index(random_model, products).evaluate([*queries, unanswered])
    with pytest.raises(ValueError, match="none of 1 queries can be used"):
        pool.evaluate([unanswered])
