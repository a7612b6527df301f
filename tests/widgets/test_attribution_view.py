"""The attribution view has one scale of colours for all queries, and marks what a hit meets."""

import re
from dataclasses import replace

import numpy as np
import pytest

import coral_lab as cl
from coral_lab.study.sweeps import attribution
from coral_lab.widgets import AttributionView
from coral_lab.widgets.attribution_view import heat_table, spread


@pytest.fixture(scope="module")
def pool(random_model, shop):
    return cl.index(random_model, shop.products[:24])


def test_colours_are_the_same_for_all_queries(pool, shop):
    queries = [query for query in shop.queries if len(query.conditions) == 2][:2]
    views = [AttributionView(pool, query, k=4) for query in queries]
    assert views[0].reach == views[1].reach == pytest.approx(spread(pool))
    for view in views:
        drawn = view.static().figure.data[0]
        assert (drawn.zmin, drawn.zmax) == (-view.reach, view.reach)
        table = view.table.pivot(index="rank", columns="condition", values="score_drop")
        np.testing.assert_array_equal(drawn.z, table.to_numpy())
        met = view.table["met"].map({True: "✓", False: "✗"}).fillna("?")
        assert [mark for row in drawn.text for mark in row] == met.tolist()


def test_a_difference_is_as_strong_as_it_is_large(pool, shop):
    query = next(query for query in shop.queries if len(query.conditions) == 2)
    table = attribution(pool, query, 1).assign(score_drop=[0.5, -3.0])
    found = re.findall(r"rgba\((.*?),(0\.\d\d)\)", heat_table(pool, query, table, 1.0))
    assert found == [("213,94,0", "0.30"), ("0,114,178", "0.60")]  # beyond the reach it is no stronger


def test_the_spread_is_of_all_pairs_and_never_zero(pool):
    rows = pool.embeddings
    pairs = [rows[i] @ rows[j] for i in range(len(rows)) for j in range(i)]
    assert spread(pool) == pytest.approx(2 * np.std(pairs), rel=1e-4)
    assert spread(replace(pool, products=pool.products[:1], embeddings=rows[:1])) == 1
    assert spread(replace(pool, embeddings=np.repeat(rows[:1], len(rows), 0))) == 1
