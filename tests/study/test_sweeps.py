"""Edits change what they say and nothing else; a sweep's ranks are those of a full sort."""

import math
import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from coral_lab import Condition, Product, Query, Settings, encode, index
from coral_lab.encoder import Encoded
from coral_lab.errors import ItemError
from coral_lab.prompts import describe, parts
from coral_lab.query import Traits
from coral_lab.retrieval import Index
from coral_lab.study.edits import (
    apply,
    captioned,
    code_switched,
    dropped,
    identity,
    images_only,
    neutralised,
    orders,
    product_of,
    retitled,
    shown_by,
    swapped,
    text_only,
    translated,
)
from coral_lab.study.sweeps import _groups, attribution, heeded, sweep


@pytest.fixture(scope="module")
def query(shop):
    return next(q for q in shop.queries if len(q.conditions) == 3)


@pytest.fixture(scope="module")
def pool(random_model, shop, query):
    wanted = {*query.positives, *(p.id for p in query.references)}
    products = {p.id: p for p in (*shop.products[:150], *map(shop.product, sorted(wanted)))}
    return index(random_model, list(products.values()), settings=Settings(store=""))


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


def test_swapping_takes_another_value_that_its_product_is_known_to_show(query, shop):
    others = shown_by(shop.queries)
    edits = dict(swapped(others)(query))
    assert list(edits) == [f"another {c.attribute}" for c in query.conditions]
    for i, edited in enumerate(edits.values()):
        changed = [
            a != b or a.product != b.product for a, b in zip(query.conditions, edited.conditions, strict=True)
        ]
        assert changed == [j == i for j in range(3)]
        new = edited.conditions[i]
        assert new.value != query.conditions[i].value
        assert new.value in new.product.attributes[new.attribute]
        assert new.product in others[new.attribute]
    again = dict(swapped(others)(query))
    assert [e.references for e in again.values()] == [e.references for e in edits.values()]
    assert again == dict(swapped(others, 0)(query)) != dict(swapped(others, 1)(query))
    assert list(swapped({})(query)) == []


def test_what_stands_for_an_attribute_is_what_queries_ask_by(shop):
    found = shown_by(shop.queries[:50])
    asked = {(c.attribute, c.product.id) for q in shop.queries[:50] for c in q.conditions}
    assert {(name, p.id) for name, own in found.items() for p in own} == asked


def test_a_neutral_reference_keeps_the_sentence_and_says_nothing(query):
    for i, (name, edited) in enumerate(neutralised(query)):
        assert name == f"neutral {query.conditions[i].attribute}"
        assert [c.attribute for c in edited.conditions] == [c.attribute for c in query.conditions]
        assert [p for p in edited.references if p in query.references] == [
            p for j, p in enumerate(query.references) if j != i
        ]
        grey = edited.references[i]
        assert grey.title == ""
        assert grey.picture.getcolors() == [(224 * 224, (128, 128, 128))]


def test_translation_changes_words_and_not_what_is_asked(query, shop):
    ((name, edited),) = product_of(retitled(shop.traits, "th"), translated("vi"))(query)
    assert name == "titles th · instruction vi"
    assert {p.language for p in edited.references} == {"th"}
    assert edited.language == "vi"
    assert [c.value for c in edited.conditions] == [c.value for c in query.conditions]
    assert [p.image for p in edited.references] == [p.image for p in query.references]


def test_code_switching_gives_each_reference_its_own_language(query, shop):
    ((name, edited),) = code_switched(shop.traits)(query)
    assert name == "code-switched"
    assert len({p.language for p in edited.references}) == 3
    assert [p.image for p in edited.references] == [p.image for p in query.references]
    assert [c.value for c in edited.conditions] == [c.value for c in query.conditions]
    assert [p.title for p in dict(code_switched(shop.traits)(query))[name].references] == [
        p.title for p in edited.references
    ]


def test_captions_say_what_pictures_showed(query):
    ((_, edited),) = captioned(query)
    text = "".join(parts(edited))  # no picture is left
    for product in query.references:
        assert describe(product) in text
        assert product.title in text


def test_one_sense_at_a_time(query):
    ((_, images),), ((_, text),) = images_only(query), text_only(query)
    pictures = [part for part in parts(images) if not isinstance(part, str)]
    assert len(pictures) == 3
    assert not any(p.title for p in images.references)
    assert all(isinstance(part, str) for part in parts(text))
    assert query.references[0].title in "".join(parts(text))


def test_applying_is_for_one_edit_a_query(query):
    (edited,) = apply(text_only, [query])
    assert edited.parent is query
    assert all(p.image is None for p in edited.references)
    with pytest.raises(ValueError, match="has 6 edits"):
        apply(orders, [query])
    with pytest.raises(ValueError, match="has 0 edits"):
        apply(swapped({}), [query])


def test_titles_change_only_where_there_are_parallel_ones(query):
    for edit in (partial(retitled, language="th"), code_switched):
        with pytest.raises(ValueError, match="one title a product"):
            edit(Traits())


def test_a_product_of_edits_is_every_combination(query, shop):
    found = dict(product_of(orders, retitled(shop.traits, "en"))(query))
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
        scores = pool.embeddings @ encode(pool.model, edited, settings=Settings(store=""))[0]
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


def test_each_picture_of_a_sweep_is_looked_at_once_a_format(pool, shop, monkeypatch):
    queries = [q for q in shop.queries if len(q.conditions) == 2][:4]
    looked = []
    tower = pool.model.network.model.get_image_features

    def counted(values, grids, **options):
        looked.append(len(grids))
        return tower(values, grids, **options)

    monkeypatch.setattr(pool.model.network.model, "get_image_features", counted)
    small = replace(pool, settings=Settings(batch_size=8, store=""))
    table = sweep(small, queries, [orders, dropped, text_only])
    assert len(table) == 4 * (1 + 2 + 2 + 1)
    assert sum(looked) == len({p.id for q in queries for p in q.references}) == 8
    assert len(looked) == 4  # 6 edits a query, 8 a batch


def test_edited_queries_come_with_the_table_and_know_their_parents(pool, query):
    table = sweep(pool, [query], [orders])
    assert list(table["query"]) == [edited.parent.id for edited in table["edited"]]
    assert table["edited"][2].conditions == tuple(query.conditions[i] for i in (0, 2, 1))


@pytest.mark.parametrize(
    ("families", "groups"), [([1, 3, 1, 1], [4, 2]), ([3, 2, 2, 1], [3, 4, 1]), ([9, 4, 0], [9, 4]), ([], [])]
)
def test_families_of_edits_stay_together_four_a_group(query, families, groups):
    found = _groups([[(f"{i}", query)] * size for i, size in enumerate(families)], 4)
    assert [len(group) for group in found] == groups
    names = [name for group in found for name, _ in group]
    assert names == [f"{i}" for i, size in enumerate(families) for _ in range(size)]


@pytest.fixture
def given_scores(pool, monkeypatch):
    """An index over products, and a query's edits, whose scores are given: a row for each text."""

    def made(products: list[Product], scores: dict[str, list[float]]) -> Index:
        rows = {text: np.array(own, np.float32) for text, own in scores.items()}
        monkeypatch.setattr(
            "coral_lab.study.sweeps.encode_all",
            lambda _, asked, *__: Encoded(np.stack([rows[query.text] for query in asked]), ()),
        )
        return Index(pool.model, products, np.eye(len(products), dtype=np.float32))

    return made


def test_every_column_of_a_sweep_by_hand(given_scores):
    """Five products, the last of them shown by the query; p2 and p3 are right, and tie in one edit."""
    products = [Product(f"p{i}", "", None, "bag") for i in range(5)]

    def worded(query):
        for text in ("worse", "tied", "better"):
            yield text, query.edited(text=text)

    index = given_scores(
        products,
        {
            "asked": [0.9, 0.1, 0.5, 0.4, 1.0],
            "worse": [0.9, 0.8, 0.3, 0.6, 1.0],
            "tied": [0.7, 0.7, 0.7, 0.7, 0.7],
            "better": [0.1, 0.2, 0.3, 0.6, 0.9],
        },
    )
    query = Query("q", "bag", (Condition("brand", products[4]),), "asked", positives=("p2", "p3", "gone"))
    table = sweep(index, [query], worded, k=2).set_index("edit")
    expected = {
        # rank, score, top, spread, first, overlap, rank_shift, flipped
        "as asked": (2, 0.5, 0.9, 0.9 - 0.5, "p0", 1, 0, False),
        "worse": (3, 0.6, 0.9, 0.9 - 0.8, "p0", 1 / 2, 1, False),
        "tied": (3, 0.7, 0.7, 0, "p0", 1 / 2, 1, False),
        "better": (1, 0.6, 0.6, 0.6 - 0.3, "p3", 1 / 2, -1, True),
    }
    columns = ["rank", "score", "top", "spread", "first", "overlap", "rank_shift", "flipped"]
    for name, values in expected.items():
        for column, value in zip(columns, values, strict=True):
            wanted = pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
            assert table.loc[name, column] == wanted, (name, column)
    assert set(table["conditions"]) == {1}
    assert set(table["query"]) == {"q"}


@pytest.mark.parametrize("how", [dropped, neutralised])
def test_attribution_is_the_difference_of_two_scores(pool, query, how):
    table = attribution(pool, query, k=4, how=how)
    assert len(table) == 4 * 3
    gone = {p.id for p in query.references} - set(query.positives)
    asked, *without = encode(
        pool.model, [query, *(edited for _, edited in how(query))], settings=Settings(store="")
    )
    for _, row in table.iterrows():
        place, other = pool.row_of[row["id"]], pool.embeddings @ without[row["condition"]]
        assert row["score_drop"] == pytest.approx(
            float(asked @ pool.embeddings[place] - other[place]), abs=1e-5
        )
        order = [pool.products[i].id for i in np.argsort(-other, kind="stable")]
        assert row["rank_without"] == 1 + [id for id in order if id not in gone].index(row["id"])
        assert row["met"] == query.conditions[row["condition"]].met_by(pool.products[place])


def test_a_condition_is_heeded_where_it_adds_more_to_what_meets_it(pool, monkeypatch):
    """Three products of one class and a query whose scores are given: colour decides, size adds the same to
    all.
    """
    products = [
        Product(f"p{i}", "", None, "bag", attributes={"color": (c,), "size": (s,)})
        for i, (c, s) in enumerate([("red", "S"), ("red", "M"), ("blue", "S")])
    ]
    query = Query(
        "q",
        "bag",
        (Condition("color", Product("a", "A"), "red"), Condition("size", Product("b", "B"), "S")),
        positives=("p0",),
    )
    scores = np.array(
        [[0.9, 0.8, 0.4], [0.6, 0.7, 0.6], [0.7, 0.6, 0.2]], np.float32
    )  # asked, no colour, no size
    index = Index(pool.model, products, np.eye(3, dtype=np.float32))
    items = [query, *(edited for _, edited in dropped(query))]
    monkeypatch.setattr(
        "coral_lab.study.sweeps.encode_all",
        lambda _, asked, *__: Encoded(scores[[items.index(q) for q in asked]], ()),
    )
    table = heeded(index, [query]).set_index("attribute")
    assert table.loc["color", "gain"] == pytest.approx((0.3 + 0.1) / 2 - -0.2)
    assert table.loc["size", "gain"] == pytest.approx(0, abs=1e-6)
    assert list(table["rank_shift"]) == [1, 0]
    everywhere = replace(query, conditions=(Condition("color", Product("a", "A"), "red"),))
    items = [everywhere, everywhere.edited(conditions=())]
    same_class = Index(pool.model, [*products[:2], replace(products[2], class_name="hat")], index.embeddings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no mean of nothing
        assert heeded(same_class, [everywhere])["gain"].isna().all()  # all of the class are red


def test_taking_away_needs_one_edit_a_condition(pool, query):
    with pytest.raises(ValueError, match="has 3 conditions and 6 edits"):
        attribution(pool, query, how=orders)


def test_nothing_is_left_of_a_query_that_only_had_one_condition(shop):
    lone = Query("lone", "", shop.queries[0].conditions[:1])
    assert list(dropped(lone)) == []
    with pytest.raises(ItemError):
        lone.edited(conditions=())


@pytest.fixture
def skipping(pool, query):
    """The pool with settings that skip, and three queries: whole, one reference of which cannot be read, and
    one that `swapping` makes unreadable.
    """
    broken = Product("broken", "a bag", b"no picture", "bag")
    damaged = replace(
        query, id="damaged", conditions=(replace(query.conditions[0], product=broken), *query.conditions[1:])
    )
    return replace(pool, settings=replace(pool.settings, on_error="skip")), [query, damaged], broken


def test_a_sweep_skips_what_cannot_be_read_and_says_so(skipping, pool):
    lenient, queries, broken = skipping

    def breaking(query):
        first, *rest = query.conditions
        yield "fine", query.edited(text=" in red.")
        yield "broken", query.edited(conditions=(replace(first, product=broken), *rest))

    table = sweep(lenient, queries, breaking)
    assert list(zip(table["query"], table["edit"], strict=True)) == [
        (queries[0].id, "as asked"),
        (queries[0].id, "fine"),
    ]
    # of the second query neither the form asked nor its edits can be compared
    assert len(table.attrs["skipped"]) == 4
    assert all("picture cannot be read" in said for said in table.attrs["skipped"])
    whole = sweep(pool, queries[:1], lambda query: [("fine", query.edited(text=" in red."))])
    assert table.drop(columns="edited").equals(whole.drop(columns="edited"))
    with pytest.raises(ItemError, match="picture cannot be read"):
        sweep(pool, queries, breaking)
    # whatever an edit is called
    assert sweep(
        lenient, queries[1:], lambda query: [("a part", query.edited(conditions=query.conditions[1:]))]
    ).empty


def test_conditions_of_what_cannot_be_read_are_skipped_and_listed(skipping, pool):
    lenient, queries, _ = skipping
    table = heeded(lenient, [queries[1], queries[0]])
    assert set(table["query"]) == {queries[0].id}
    assert len(table) == 3
    assert any("query damaged" in said for said in table.attrs["skipped"])
    with pytest.raises(ItemError, match="query damaged"):
        heeded(pool, queries)


def test_nothing_is_said_to_be_skipped_where_nothing_was(pool, query):
    assert sweep(pool, [query]).attrs == heeded(pool, [query]).attrs == {"skipped": []}
    assert sweep(pool, []).attrs == {"skipped": []}
