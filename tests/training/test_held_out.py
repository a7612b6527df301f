"""What is held out is not learnt from, in no variant, and is searched as `evaluate` searches."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import coral_lab as cl
from coral_lab.errors import ItemError
from coral_lab.query import Condition, Dataset, Product, Query
from coral_lab.training import distributed, held_out
from coral_lab.training.held_out import embedded, evaluation, listings, split
from coral_lab.training.learner import Learner
from coral_lab.training.reconstruction import CONTRASTIVE, decoders
from tests.conftest import noise

IDS = [f"p{i}" for i in range(12)]
NAMED = st.lists(st.sampled_from(IDS), max_size=3, unique=True)
TITLES = st.sampled_from(["", "  ", "a red bag", " A red BAG", "a hat", "a sock"])


CLASSES = st.sampled_from(["bag", "hat"])
PRODUCTS = st.lists(st.tuples(TITLES, CLASSES), min_size=2, max_size=len(IDS))
PLACES = st.lists(st.integers(0, 11), max_size=2)
QUERIES = st.lists(st.tuples(CLASSES, PLACES, st.integers(0, 11), NAMED, NAMED), min_size=2, max_size=8)


def drawn(products, queries) -> Dataset:
    """Few products, many queries of them: listings run into each other; some ids are in no pool."""
    made = [Product(id, *of) for id, of in zip(IDS, [(t, None, c) for t, c in products], strict=False)]
    asked = []
    for i, (name, shown, first, others, hard) in enumerate(queries):
        conditions = tuple(Condition("color", made[place % len(made)]) for place in shown)
        positives = (IDS[first % len(made)], *others)
        asked.append(Query(f"q{i}", name, conditions, positives=positives, hard_negatives=tuple(hard)))
    return Dataset("drawn", made, asked)


def cut(shop, count, seed):
    """The split, for a shop of which one is left."""
    try:
        return split(shop, count, seed)
    except ValueError as error:
        assert "leaves none to train on" in str(error)  # noqa: PT017
        assume(False)


@settings(max_examples=80, deadline=None)
@given(PRODUCTS, QUERIES, st.integers(0, 6), st.integers(0, 3))
def test_no_listing_that_is_held_out_is_seen_in_training(products, queries, count, seed):
    shop, count = drawn(products, queries), 1 + count % (len(queries) - 1)
    found, of = cut(shop, count, seed), listings(shop)
    gone = {of[id] for query in found.held_out.queries for id in query.positives if id in of}
    training = found.training
    seen = {product.id for product in training.products}
    for query in training.queries:
        seen |= {*query.positives, *query.hard_negatives, *(product.id for product in query.references)}
    assert not {of[id] for id in seen if id in of} & gone
    # what is in training is all that may be there, and in its order
    assert training.products == [product for product in shop.products if of[product.id] not in gone]
    assert all(any(id in training.by_id for id in query.positives) for query in training.queries)


@settings(max_examples=80, deadline=None)
@given(PRODUCTS, QUERIES, st.integers(0, 6), st.integers(0, 3))
def test_every_query_is_trained_on_or_held_out_or_in_neither(products, queries, count, seed):
    shop, count = drawn(products, queries), 1 + count % (len(queries) - 1)
    found = cut(shop, count, seed)
    kept, held = ([query.id for query in own.queries] for own in (found.training, found.held_out))
    assert len(held) == count
    assert len(kept) + len(held) + found.neither == len(shop.queries)
    assert len({*kept, *held}) == len(kept) + len(held)
    order = [query.id for query in shop.queries]
    assert kept == [id for id in order if id in kept]
    assert held == [id for id in order if id in held]
    by_id = {query.id: query for query in shop.queries}
    assert all(query == by_id[query.id] for query in found.held_out.queries)
    pool = Counter(product.id for product in found.held_out.products)
    assert max(pool.values()) == 1
    for query in found.held_out.queries:  # all its answers that the shop has, and one at least
        assert {id for id in query.positives if id in shop.by_id} <= pool.keys()
        assert pool.keys() & {*query.positives}
    again = split(shop, count, seed)
    assert [own.queries for own in (again.training, again.held_out)] == [
        found.training.queries,
        found.held_out.queries,
    ]
    assert again.held_out.products == found.held_out.products


def product(id, title="", name="bag"):
    return Product(id, title, class_name=name)


def query(id, positives, hard=(), shown=()):
    conditions = tuple(Condition("color", one) for one in shown)
    return Query(id, "bag", conditions, positives=tuple(positives), hard_negatives=tuple(hard))


def groups(shop) -> set[str]:
    found = {}
    for id, number in listings(shop).items():
        found.setdefault(number, []).append(id)
    return {"".join(sorted(ids)) for ids in found.values()}


def test_a_listing_is_a_query_s_only_answer_with_its_hard_negatives():
    products = [product(id) for id in "abcdefg"]
    queries = [
        query("one", "a", "bc"),
        query("chain", "d", "c"),
        query("two answers", "ef", "bg"),
        query("no wrong ones", "f"),
        query("of no pool", "x", ["e", "y"]),
    ]
    assert groups(Dataset("s", products, queries)) == {"abcdg", "e", "f"}


def test_a_listing_is_what_has_one_title_in_one_class():
    products = [
        product("a", "A Bag"),
        product("b", "a bag "),
        product("c", "a bag", "hat"),
        product("d"),
        product("e"),
        product("f", " \n"),
    ]
    assert groups(Dataset("s", products, [])) == {"ab", "c", "d", "e", "f"}


def test_numbers_of_listings_run_from_0_in_the_order_of_products():
    products = [product("a"), product("b", "t"), product("c"), product("d", "t")]
    assert listings(Dataset("s", products, [])) == {"a": 0, "b": 1, "c": 2, "d": 1}


def test_what_is_left_of_a_query_goes_without_what_is_held_out(monkeypatch):
    """Whatever is drawn, here the first query with answer a, of one listing with b."""
    products = [product("a", "same"), product("b", "same"), *(product(id) for id in "cde")]
    queries = [
        query("held", "a"),
        query("answer and negatives go", "bc", "ad"),
        query("nothing left", "ab"),
        query("shows it", "c", shown=[products[1]]),
        query("untouched", "d", "e", shown=[products[2]]),
    ]
    monkeypatch.setattr(held_out.Random, "sample", lambda self, some, count: list(some)[:count])
    found = split(Dataset("s", products, queries), 1)
    # the two with wrong answers and more than one right one join nothing but the wrong ones: a and d
    assert [one.id for one in found.held_out.queries] == ["held"]
    assert [(one.id, one.positives, one.hard_negatives) for one in found.training.queries] == [
        ("answer and negatives go", ("c",), ())
    ]
    assert found.neither == 3
    assert found.held_out.name == "s, held out"


def test_the_pool_has_others_up_to_a_size_and_never_less_than_the_answers(monkeypatch):
    products = [product(str(i)) for i in range(50)]
    shop = Dataset("s", products, [query(f"q{i}", [str(i), str(i + 20)]) for i in range(20)])
    for size, wanted in ((30, 30), (1000, 50), (1, 10)):
        monkeypatch.setattr(held_out, "POOL", size)
        found = split(shop, 5)
        assert len(found.held_out.products) == wanted
        assert len({one.id for one in found.held_out.products}) == wanted
        assert len(found.training.products) == 40


def test_another_seed_holds_out_others(shop):
    first, second = (split(shop, 20, seed).held_out.queries for seed in (0, 1))
    assert [one.id for one in first] != [one.id for one in second]


@pytest.mark.parametrize("count", [-1, 0, 3, 10**9])
def test_a_count_that_leaves_nothing_is_refused(count):
    shop = Dataset("s", [product(id) for id in "abc"], [query(id, id) for id in "abc"])
    with pytest.raises(ValueError, match=f"{count} of 3 queries; give 1 or more and leave some"):
        split(shop, count)


def test_listings_of_everything_leave_none_to_train_on():
    shop = Dataset("s", [product(id, "same") for id in "abc"], [query(id, id) for id in "abc"])
    with pytest.raises(ValueError, match="holding 1 of 3 queries out leaves none to train on that share no"):
        split(shop, 1)


def test_a_query_without_an_answer_in_the_pool_is_refused_wherever_it_would_be():
    shop = Dataset("s", [product(id) for id in "abc"], [query("a", "a"), query("b", "b"), query("x", "x")])
    for seed in range(4):
        with pytest.raises(ItemError, match="query x: has no positives in the pool"):
            split(shop, 1, seed)


@pytest.fixture(scope="module")
def learner(random_model):
    return Learner(random_model, decoders(random_model, CONTRASTIVE), CONTRASTIVE)


@pytest.fixture(scope="module")
def held(shop):
    some = shop.queries[:30]
    return split(replace(shop, products=shop.smaller_pool(some, 60), queries=some), 7).held_out


@pytest.mark.parametrize("format", ["seq", "cat"])
def test_embeddings_are_those_of_encode(random_model, learner, held, format):
    for items in (held.products[:9], held.queries):
        ours = embedded(learner, items, format, 4)
        expected = cl.encode(random_model, items, format, settings=cl.Settings(progress=False, batch_size=4))
        np.testing.assert_allclose(ours, expected, atol=1e-6)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("count", [1, 4, 5])
def test_of_several_processes_each_embeds_its_own_and_all_have_all(
    random_model, learner, held, monkeypatch, sharded, count
):
    """Three processes one after the other: what each embedded is put together in the order of the items."""
    items = held.products[:count]
    expected = cl.encode(random_model, items, settings=cl.Settings(progress=False))
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    own = []
    if sharded:
        monkeypatch.setattr(learner, "sharded", True)
        monkeypatch.setattr(type(learner), "_blank", {})
        monkeypatch.setattr(type(learner), "reshard", lambda self: None, raising=False)
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda: rank)  # noqa: B023
        monkeypatch.setattr(distributed, "gather_objects", lambda rows: own.append(rows) or [rows] * 3)
        embedded(learner, items, "seq", 2)
    assert len({rows.shape for rows in own}) == 1  # as many everywhere
    monkeypatch.setattr(distributed, "gather_objects", lambda rows: own[:3])
    np.testing.assert_allclose(embedded(learner, items, "seq", 2), expected, atol=1e-5)


@pytest.mark.parametrize("format", ["seq", "cat"])
def test_what_it_measures_is_what_evaluate_measures(random_model, learner, held, format):
    found = evaluation(learner, held, format)()
    expected = cl.evaluate(random_model, held.queries, held.products, format).metrics
    assert found == {name: expected[name].mean for name in ("R@1", "R@10", "MRR@10")}
    assert len(held.products) > 20
    assert 0 < found["MRR@10"] < 1  # or nothing is told apart


def test_it_follows_the_model_as_it_learns(random_folder):
    """Pictures of the queries' answers, learnt by heart."""
    model = cl.load(random_folder)
    learner = Learner(model, decoders(model, CONTRASTIVE), CONTRASTIVE)
    products = [Product(f"p{i}", "", noise(56, 56, i), "bag") for i in range(30)]
    queries = [
        Query(f"q{i}", "bag", (Condition("color", one),), positives=(one.id,))
        for i, one in enumerate(products[:6])
    ]
    measured = evaluation(learner, Dataset("s", products, queries))
    before = measured()
    optimizer = torch.optim.Adam(model.network.parameters(), 1e-3)
    from coral_lab.models.inputs import prompt

    for _ in range(15):
        asked = learner.embed([prompt(model, one) for one in queries])
        answers = learner.embed([prompt(model, one) for one in products])
        torch.nn.functional.cross_entropy(20 * asked @ answers.T, torch.arange(6)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert measured()["MRR@10"] > before["MRR@10"]
