"""Compositional splits: what is held out is not in training, and both halves are; by brute force too."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab import Condition, Dataset, Product, Query
from coral_lab.errors import NotShownError
from coral_lab.query import AS_IMAGE, Traits
from coral_lab.study.splits import KINDS, CompositionalSplit, compositional_split, counts, without
from tests.study.oracles import small_shop


@pytest.fixture(scope="module")
def own():
    return small_shop(200, 150)


def has(product: Product, half) -> bool:
    return product.class_name == half[0] if len(half) == 1 else half[1] in product.attributes.get(half[0], ())


def asks(query: Query, half) -> bool:
    return (
        query.class_name == half[0]
        if len(half) == 1
        else half in {(c.attribute, c.value) for c in query.conditions}
    )


def assert_split(split: CompositionalSplit) -> None:
    """By brute force, whatever the split says of itself."""
    train = split.train
    assert split.held_out
    assert train.queries
    assert split.test.queries
    ids = {product.id for product in train.products}
    for pair in split.held_out:
        for half in pair:
            assert any(has(product, half) for product in train.products)
            assert any(asks(query, half) for query in train.queries)
        assert not any(all(has(product, half) for half in pair) for product in train.products)
        for query in train.queries:
            assert not all(asks(query, half) for half in pair)
            assert not any(all(has(product, half) for half in pair) for product in query.references)
    for query in train.queries:
        assert query.positives
        assert ids.issuperset(query.positives)
        assert ids.issuperset(query.hard_negatives)
    for query in split.test.queries:
        assert any(all(asks(query, half) for half in pair) for pair in split.held_out)


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 99), share=st.sampled_from((0.01, 0.03, 0.06)))
@settings(max_examples=8, deadline=None)
def test_the_combination_is_absent_and_both_halves_are_there(own, kind, seed, share):
    assert_split(compositional_split(own, kind, share, seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_drawn_catalogue_is_split_and_its_counts_prove_it(shop, kind):
    split = compositional_split(shop, kind, 0.01)
    table = counts(split)
    assert len(table) == len(split.held_out) > 2
    assert table[["products both", "queries both", "references both"]].eq(0).all(axis=None)
    halves = [f"{what} {half}" for what in ("products", "queries") for half in ("first", "second")]
    assert table[halves].gt(0).all(axis=None)
    assert len(split.test.products) == len(shop.products) > len(split.train.products) > 0
    assert split.test.name == f"mini/test, {kind} unseen"
    assert split.train.name == f"mini/test, {kind} seen"
    stated = [query for query in shop.queries if query.text != "."]
    assert any(query in split.test.queries for query in stated)  # free text asks too


def test_a_split_is_the_seeds_own(own):
    one, same, other = (compositional_split(own, "two values", 0.05, seed) for seed in (0, 0, 1))
    assert one.held_out == same.held_out != other.held_out
    assert [query.id for query in one.train.queries] == [query.id for query in same.train.queries]


def products(*facts: tuple[str, str]) -> tuple[Product, ...]:
    return tuple(
        Product(f"p{i}", class_name=name, attributes={"color": tuple(color.split())})
        for i, (name, color) in enumerate(facts)
    )


def by_hand() -> Dataset:
    """Of bags and lamps in red and blue; only "red bag" can go and leave red and bags in what is asked."""
    pool = products(
        ("bag", "red"),
        ("bag", "blue"),
        ("lamp", "red"),
        ("lamp", "blue"),
        ("bag", "red blue"),
        ("lamp", "blue"),
    )
    red, blue = (Condition("color", pool[place], value) for place, value in ((2, "red"), (5, "blue")))
    queries = (
        Query("red bag", "bag", (red,), ".", ("p0", "p4")),
        Query("blue bag", "bag", (blue,), ".", ("p1", "p4"), ("p0",), relevance={"p1": 2, "p4": 1, "p0": 0}),
        Query("red lamp", "lamp", (replace(red, product=pool[3]),), ".", ("p2",)),
        Query("shown", "lamp", (Condition("color", pool[0], AS_IMAGE),), ".", ("p3",)),
    )
    return Dataset("by hand", pool, queries)


def test_what_is_taken_away_by_hand():
    kept = without(by_hand(), [(("bag",), ("color", "red"))])
    assert [product.id for product in kept.products] == ["p1", "p2", "p3", "p5"]  # p4 is red as well
    assert [query.id for query in kept.queries] == ["blue bag", "red lamp"]  # "shown" points at a red bag
    blue = kept.queries[0]
    assert blue.positives == ("p1",)
    assert blue.hard_negatives == ()
    assert dict(blue.relevance) == {"p1": 2}


def test_a_pair_that_would_take_a_half_with_it_is_passed_over():
    """Without blue bags nothing asks for blue, without red lamps nobody for lamps with a word."""
    split = compositional_split(by_hand(), "class and value", 0.3)
    assert split.held_out == ((("bag",), ("color", "red")),)
    assert [query.id for query in split.test.queries] == ["red bag"]
    row = counts(split).iloc[0]
    assert row[["products both", "queries both", "products first", "products second"]].tolist() == [
        0,
        0,
        1,
        1,
    ]
    with pytest.raises(ValueError, match=r"of 3 pairs in by hand no 2 can be held out .* a smaller share"):
        compositional_split(by_hand(), "class and value", 0.7)


def test_another_datasets_queries_ask_for_the_same_pairs(own):
    split = compositional_split(own, "two values", 0.05)
    other = small_shop(150, 100, seed=1)
    test = split.of(other)
    assert test.products is other.products
    assert 0 < len(test.queries) < len(other.queries)
    for query in test.queries:
        assert any(all(asks(query, half) for half in pair) for pair in split.held_out)
    strange = Query("q", "boat", own.queries[0].conditions, ".", ("p0",))
    with pytest.raises(
        ValueError, match="no query of shop 1 asks for a held-out pair among classes and values"
    ):
        split.of(replace(other, queries=(strange,)))


def test_free_text_counts_where_it_is_told():
    told = Traits(stated=lambda query: ("size", "M") if "size M" in query.text else None)
    pool = tuple(replace(p, attributes={**p.attributes, "size": ("M",)}) for p in by_hand().products)
    asked = replace(by_hand().queries[0], text=" in size M.")
    shop = Dataset("told", pool, (asked,), traits=told)
    assert not without(shop, [(("color", "red"), ("size", "M"))]).queries
    assert without(shop, [(("color", "blue"), ("size", "S"))]).queries


def test_what_cannot_be_split_is_said_in_a_line(own):
    for kind, share in (("pairs", 0.1), ("two values", 0.0), ("two values", 1.0)):
        with pytest.raises(ValueError, match="use class and value or two values, and 0 to 1"):
            compositional_split(own, kind, share)
    bare = replace(own, products=tuple(Product(p.id, "t", class_name="bag") for p in own.products))
    with pytest.raises(NotShownError, match="has no attributes"):
        compositional_split(bare)
    with pytest.raises(NotShownError, match="has no queries"):
        compositional_split(replace(own, queries=()))
    one = replace(own, queries=tuple(q.edited(conditions=q.conditions[:1]) for q in own.queries))
    with pytest.raises(ValueError, match=r"no query of shop 0 asks for a pair of two values; give queries"):
        compositional_split(one, "two values")
    with pytest.raises(ValueError, match=r"pairs in shop 0 no .* can be held out"):
        compositional_split(own, "two values", 0.99)
