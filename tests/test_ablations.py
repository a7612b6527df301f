"""Interventions change what they say and nothing else; a sweep's ranks are those of a full sort."""

import math

import numpy as np
import pytest

from coral_lab import ItemError, Query, encode, index
from coral_lab.ablations import (
    attribution,
    dropped,
    identity,
    images_only,
    orders,
    product_of,
    swapped,
    sweep,
    text_only,
    translated,
)
from coral_lab.interleaved import parts


@pytest.fixture(scope="module")
def query(shop):
    return next(q for q in shop.queries if len(q.conditions) == 3)


@pytest.fixture(scope="module")
def pool(random_model, shop, query):
    wanted = {*query.positives, *(p.id for p in query.references)}
    products = {p.id: p for p in (*shop.products[:150], *map(shop.product, sorted(wanted)))}
    return index(random_model, list(products.values()), store="")


def test_orders_are_all_permutations_and_the_first_is_as_asked(query):
    found = dict(orders(query))
    assert list(found) == ["0-1-2", "0-2-1", "1-0-2", "1-2-0", "2-0-1", "2-1-0"]
    assert found["0-1-2"] == query
    for order, edited in found.items():
        assert edited.parent is query
        assert edited.conditions == tuple(query.conditions[int(i)] for i in order.split("-"))
        assert (edited.text, edited.class_name, edited.positives) == (
            query.text,
            query.class_name,
            query.positives,
        )


def test_dropping_leaves_the_others(query):
    for i, (name, edited) in enumerate(dropped(query)):
        assert name == f"without {query.conditions[i].attribute}"
        assert edited.conditions == tuple(c for j, c in enumerate(query.conditions) if j != i)


def test_swapping_takes_another_value(query, shop):
    others = {c.attribute: shop.products for c in query.conditions}
    for i, (_, edited) in enumerate(swapped(others)(query)):
        changed = [
            a != b or a.product != b.product for a, b in zip(query.conditions, edited.conditions, strict=True)
        ]
        assert changed == [j == i for j in range(3)]
        assert edited.conditions[i].value != query.conditions[i].value
        assert (
            edited.conditions[i].value
            in edited.conditions[i].product.attributes[edited.conditions[i].attribute]
        )


def test_translation_changes_words_and_not_what_is_asked(query):
    ((name, edited),) = translated("th", "vi")(query)
    assert name == "titles th instruction vi"
    assert {p.language for p in edited.references} == {"th"}
    assert edited.language == "vi"
    assert [c.value for c in edited.conditions] == [c.value for c in query.conditions]
    assert [p.image for p in edited.references] == [p.image for p in query.references]


def test_one_sense_at_a_time(query):
    ((_, images),), ((_, text),) = images_only(query), text_only(query)
    pictures = [part for part in parts(images) if not isinstance(part, str)]
    assert len(pictures) == 3
    assert not any(p.title for p in images.references)
    assert all(isinstance(part, str) for part in parts(text))
    assert query.references[0].title in "".join(parts(text))


def test_a_product_of_interventions_is_every_combination(query):
    found = dict(product_of(orders, translated("en"))(query))
    assert len(found) == 6
    assert "2-1-0 · titles en" in found
    assert all(edited.parent is query for edited in found.values())


def test_a_sweep_ranks_as_a_full_sort_does(pool, query):
    table = sweep(pool, [query], [orders, dropped, text_only], k=5)
    assert list(table["edit"])[:2] == ["as asked", "0-1-2"]
    assert len(table) == 1 + 6 + 3 + 1
    gone = {p.id for p in query.references} - set(query.positives)
    edits = [edited for make in (identity, orders, dropped, text_only) for _, edited in make(query)]
    for (_, row), edited in zip(table.iterrows(), edits, strict=True):
        scores = pool.embeddings @ encode(pool.model, edited, store="")[0]
        order = [
            pool.products[i].id for i in np.argsort(-scores, kind="stable") if pool.products[i].id not in gone
        ]
        assert row["rank"] == 1 + min(order.index(id) for id in query.positives)
        assert row["first"] == order[0]
    same = table.iloc[1]
    assert (same["overlap"], same["rank_shift"], same["flipped"]) == (1, 0, False)


def test_formats_are_swept_too(pool, query):
    def short(q):
        yield f"a {q.class_name}"
        yield q.conditions[0].product

    table = sweep(pool, [query], images_only, formats={"seq": "seq", "short": short})
    assert set(table["format"]) == {"seq", "short"}
    assert len(table) == 4


def test_a_query_without_positives_in_the_pool_has_no_rank(pool, query):
    table = sweep(pool, [query.edited(positives=("nowhere",))], [])
    assert table.loc[0, "rank"] == 0
    assert math.isnan(table.loc[0, "score"])


def test_attribution_is_the_difference_of_two_scores(pool, query):
    table = attribution(pool, query, k=4)
    assert len(table) == 4 * 3
    without = query.edited(conditions=query.conditions[1:])
    both = encode(pool.model, [query, without], store="")
    first = table.iloc[0]
    place = pool.rows[first["id"]]
    expected = (both[0] - both[1]) @ pool.embeddings[place]
    assert first["score_drop"] == pytest.approx(float(expected), abs=1e-5)
    assert first["met"] == query.conditions[0].met_by(pool.products[place])


def test_nothing_is_left_of_a_query_that_only_had_one_condition(shop):
    lone = Query("lone", "", shop.queries[0].conditions[:1])
    assert list(dropped(lone)) == []
    with pytest.raises(ItemError):
        lone.edited(conditions=())
