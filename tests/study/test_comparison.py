"""Comparisons are paired, and embeddings made by hand are judged as a model's own."""

import math

import numpy as np
import pandas as pd
import pytest

from coral_lab import Condition, Product, Query, Settings, encode, evaluate, index
from coral_lab.evaluation import Result
from coral_lab.metrics import paired_difference
from coral_lab.study.comparison import change, compare_edits, conditions_met, first_hits, judged


@pytest.fixture(scope="module")
def query(shop):
    return next(q for q in shop.queries if len(q.conditions) == 3)


@pytest.fixture(scope="module")
def pool(random_model, shop, query):
    products = {
        p.id: p for p in (*shop.products[:60], *map(shop.product, sorted(query.positives)), *query.references)
    }
    return index(random_model, list(products.values()), settings=Settings(store=""))


def test_comparing_is_a_paired_test_on_the_same_queries():
    ranks = {"as asked": [1, 1, 2, 0, 3, 1], "other": [1, 2, 5, 0, 1, 9], "third": [1, 1, 2, 0, 3, 1]}
    table = pd.DataFrame(
        [
            {"query": f"q{i}", "edit": name, "rank": r}
            for name, own in ranks.items()
            for i, r in enumerate(own)
        ]
    )
    found = compare_edits(table, "edit", "as asked")
    expected = paired_difference(np.array([1.0, 0, 0, 0, 1, 0]), np.array([1.0, 1, 0, 0, 0, 1]))
    assert list(found.index) == ["other", "third"]
    row = found.loc["other"]
    assert (row["R@1"], row["difference"], row["p"]) == (2 / 6, pytest.approx(-1 / 6), expected.p)
    assert row["p (Holm)"] == min(1, 2 * expected.p)
    assert (row["ranks"], row["worse"]) == (0.5, 0.5)  # shifts 0, 1, 3, 0, -2, 8
    with pytest.raises(ValueError, match="need the same queries"):
        compare_edits(table[:-1], "edit", "as asked")
    with pytest.raises(ValueError, match="baseline 'nothing'"):
        compare_edits(table, "edit", "nothing")


def test_embeddings_made_by_hand_are_judged_as_a_model_s_own(pool, query):
    queries = [query, query.edited(id="again", text=" in red.")]
    rows = encode(pool.model, queries, settings=Settings(store=""))
    expected = evaluate(pool.model, queries, pool, k=50, settings=Settings(store=""))
    found = judged(pool, queries, 7 * rows, k=50)  # whatever their length
    np.testing.assert_array_equal(found.ranked, expected.ranked)
    assert found.metrics == expected.metrics


def test_a_smaller_pool_has_all_answers_and_the_dataset_s_order(shop):
    queries = shop.queries[:3]
    answers = {id for query in queries for id in query.positives}
    found = [product.id for product in shop.smaller_pool(queries, len(answers) + 5)]
    assert answers <= set(found)
    assert len(found) == len(answers) + 5
    assert found == [product.id for product in shop.products if product.id in set(found)]
    assert {product.id for product in shop.smaller_pool(queries, 0)} == answers


def test_first_hits_are_the_best_rows(pool, query):
    (found,) = first_hits(evaluate(pool.model, [query], pool, settings=Settings(store="")))
    assert found == pool.search(query, 1)[0].product
    alone = judged(
        index(pool.model, query.references, settings=Settings(store="")),
        [query],
        np.ones((1, pool.model.dim), np.float32),
    )
    with pytest.raises(ValueError, match="nothing but its own references"):
        first_hits(alone)


def test_first_hits_need_one_for_each_query():
    products = [Product("a"), Product("b")]
    queries = [Query("q", "bag"), Query("r", "bag")]

    def found(*rows: list[int]) -> Result:
        return Result("m", queries, products, np.array(rows), np.zeros((2, 2), np.float32))

    assert first_hits(found([1, -1], [0, 1])) == [products[1], products[0]]
    for rows in (([0, 1], [-1, -1]), ([-1, -1], [-1, -1])):
        with pytest.raises(ValueError, match="nothing but its own references"):
            first_hits(found(*rows))


def test_the_rank_that_counts_as_right_can_be_named():
    ranks = {"as asked": [1, 3, 0, 2], "other": [3, 4, 1, 0]}
    table = pd.DataFrame(
        {"query": f"q{i}", "format": name, "rank": rank}
        for name, own in ranks.items()
        for i, rank in enumerate(own)
    )
    found = compare_edits(table, "format", "as asked", k=3).loc["other"]
    assert (found["R@3"], found["difference"]) == (2 / 4, -1 / 4)


def test_conditions_met_by_hand():
    red, plain = Product("r", attributes={"color": ("red",)}), Product("p", attributes={"color": ("blue",)})
    query = Query(
        "q", "bag", (Condition("color", red, "red"), Condition("product style", plain, "as product image"))
    )
    table = conditions_met([query, query], [red, plain])
    assert list(table["place"]) == [0, 1, 0, 1]
    assert list(table["attribute"])[:2] == ["color", "product style"]
    assert list(table["met"])[::2] == [1, 0]
    assert all(math.isnan(met) for met in table["met"][1::2])
    with pytest.raises(ValueError, match="zip"):
        conditions_met([query], [])


def test_a_change_by_hand():
    """Two of four queries are found that were not, one is lost."""
    found = change(np.array([1.0, 1, 0, 1]), np.array([0.0, 0, 1, 1]), "R@5")
    assert list(found) == ["R@5 change", "R@5 change low", "R@5 change high", "R@5 change p"]
    assert found["R@5 change"] == 0.25
    assert found["R@5 change low"] < 0 < found["R@5 change high"]
    assert found["R@5 change p"] == 1  # any of the eight signs of three changes is as far off
