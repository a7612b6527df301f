"""Contrastive batches: right answers are right, wrong ones wrong, and a step is its number's alone."""

from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab.errors import ItemError
from coral_lab.mini.pairs import fewer, mini_pairs, varied
from coral_lab.mini.queries import stated
from coral_lab.mini.titles import ATTRIBUTES, shown
from coral_lab.query import Condition, Dataset, Product, Query
from coral_lab.training.pairs import BATCHES, pair_sampler, plain_pairs


def wanted(query) -> dict[str, str]:
    found = {c.attribute: c.value for c in query.conditions}
    return found | ({stated(query)[0]: stated(query)[1]} if stated(query) else {})


def meets(product, query) -> bool:
    facts = {key: product.attributes[key][0] for key in ATTRIBUTES}
    return product.class_name == query.class_name and wanted(query).items() <= facts.items()


@pytest.fixture(scope="module")
def batch(shop):
    return pair_sampler(shop, mini_pairs(shop, negatives=2), batch_size=60, steps=10)(3)


def test_positives_are_all_products_that_meet_what_is_left_of_the_query(shop, batch):
    for pair in batch[:20]:
        references = {product.id for product in pair.query.references}
        right = {p.id for p in shop.products if meets(p, pair.query)} - references
        assert set(pair.query.positives) == right
        assert pair.positive.id in right


def test_the_positive_shows_what_is_wanted_wherever_one_does(shop, batch):
    for pair in batch:
        keys = wanted(pair.query).keys()
        if any(keys <= shown(shop.by_id[id]) for id in pair.query.positives):
            assert keys <= shown(pair.positive)


def test_negatives_are_of_the_class_and_do_not_answer(batch):
    for pair in batch:
        assert len(pair.negatives) == 2
        for product in pair.negatives:
            assert product.class_name == pair.query.class_name
            assert not meets(product, pair.query)


def test_known_hard_negatives_come_first(shop):
    query = next(q for q in shop.queries if len(q.hard_negatives) >= 2)
    for make in (plain_pairs(shop, 2), mini_pairs(shop, 2)):
        for seed in range(5):
            pair = make(query, Random(seed))
            hard = (
                set(query.hard_negatives) - set(pair.query.positives) - {p.id for p in pair.query.references}
            )
            assert len({p.id for p in pair.negatives} & hard) == min(2, len(hard))


def test_plain_pairs_leave_the_query_as_it_is(shop):
    query = shop.queries[0]
    pair = plain_pairs(shop)(query, Random(0))
    assert pair.query is query
    assert pair.positive.id in query.positives
    assert pair.negatives == ()


def test_some_queries_keep_all_their_conditions_and_some_lose_a_few(shop):
    rng = Random(0)
    kept = [len(fewer(query, rng).conditions) / len(query.conditions) for query in shop.queries[:300]]
    assert all(0 < share <= 1 for share in kept)
    assert 0.4 < sum(share == 1 for share in kept) / len(kept) < 0.9


def test_variations_ask_the_same(shop):
    rng = Random(0)
    for query in shop.queries[:50]:
        other = varied(query, rng)
        assert wanted(other) == wanted(query)
        assert [c.product.id for c in other.conditions] == [c.product.id for c in query.conditions]


def test_a_step_depends_on_seed_and_number_alone(shop):
    def ids(seed, step):
        sampler = pair_sampler(shop, mini_pairs(shop), 8, 10, seed)
        sampler(step + 1)
        return [(pair.query.id, pair.positive.title) for pair in sampler(step)]

    assert ids(0, 4) == ids(0, 4)
    assert ids(0, 4) != ids(0, 5)
    assert ids(0, 4) != ids(1, 4)


def test_late_batches_are_often_of_two_classes_and_early_ones_are_not(shop):
    pairs = pair_sampler(shop, plain_pairs(shop), 40, 100)
    classes = [len({pair.query.class_name for pair in pairs(step)}) for step in range(100)]
    assert min(classes[:5]) > 2
    assert 0.4 < sum(count == 2 for count in classes[50:]) / 50 < 0.95


def test_a_query_without_positives_cannot_be_trained_on(shop):
    bare = Dataset("bare", shop.products, [replace(shop.queries[0], positives=())])
    with pytest.raises(ValueError, match="no positives"):
        pair_sampler(bare, plain_pairs(bare), 1, 10)


def toy(**of_class: int) -> Dataset:
    """Products and queries of several classes, so many of each; the first product shown, the second right."""
    products = [
        Product(f"{name}{i}", class_name=name) for name, count in of_class.items() for i in range(count)
    ]
    queries = [
        Query(f"q {name}{i}", name, (Condition("color", shown),), positives=(f"{name}1",))
        for name, count in of_class.items()
        for i in range(count)
        for shown in products
        if shown.id == f"{name}0"
    ]
    return Dataset("toy", products, queries)


def test_wrong_answers_are_neither_right_nor_shown_and_known_ones_are_drawn_once():
    shop = toy(bag=5, hat=3)
    known = replace(shop.queries[0], hard_negatives=("bag1", "bag0", "bag3", "hat2", "nowhere"))
    for seed in range(20):
        first = plain_pairs(shop, 2)(known, Random(seed)).negatives
        assert {product.id for product in first} == {"bag3", "hat2"}
        more = plain_pairs(shop, 4)(known, Random(seed)).negatives
        assert len(more) == 4
        assert {product.id for product in more[:2]} == {"bag3", "hat2"}
        assert {product.id for product in more[2:]} <= {"bag2", "bag3", "bag4"}


def test_half_way_three_batches_in_four_are_of_two_classes(monkeypatch):
    """Where there are more than two; `random` gives 0.74, and then 0.76, of the way to 1."""
    shop, two = toy(bag=9, hat=9, sock=9), toy(bag=9, hat=9)

    def classes(shop, step, drawn, steps=100, size=18):
        monkeypatch.setattr(Random, "random", lambda self: drawn)
        return len(
            {pair.query.class_name for pair in pair_sampler(shop, plain_pairs(shop), size, steps)(step)}
        )

    assert [classes(shop, step, drawn) for step in (50, 99) for drawn in (0.74, 0.76)] == [2, 3, 2, 3]
    assert [classes(shop, 25, drawn) for drawn in (0.37, 0.38)] == [2, 3]
    assert classes(shop, 0, 0.0) == 3
    assert classes(two, 50, 0.0) == 2
    assert len(pair_sampler(shop, plain_pairs(shop), 4, 10)(0)) == 4
    few = toy(**{f"class{i}": 2 for i in range(20)})  # where two have too few for a batch
    assert classes(few, 99, 0.0, size=5) > 2


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 30), st.data())
def test_mixed_batches_show_every_query_exactly_once_an_epoch(count, data):
    size, seed = data.draw(st.integers(1, count)), data.draw(st.integers(0, 3))
    shop = toy(bag=count)
    pairs = pair_sampler(shop, plain_pairs(shop), size, 1, seed, "mixed")
    steps = range(-(-3 * count // size))
    shown = [pair.query.id for step in steps for pair in pairs(step)]
    everything = sorted(query.id for query in shop.queries)
    for epoch in range(3):
        assert sorted(shown[epoch * count : (epoch + 1) * count]) == everything
    last = data.draw(st.sampled_from(steps))  # whatever was asked for before
    again = pair_sampler(shop, plain_pairs(shop), size, 1, seed, "mixed")(last)
    assert [pair.query.id for pair in again] == shown[last * size : (last + 1) * size]


def test_mixed_epochs_and_seeds_differ_in_order():
    shop = toy(bag=30)

    def order(seed, epoch):
        pairs = pair_sampler(shop, plain_pairs(shop), 30, 1, seed, "mixed")(epoch)
        return tuple(pair.query.id for pair in pairs)

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({*orders, tuple(query.id for query in shop.queries)}) == 7


def test_mixed_batches_are_of_all_classes_to_the_end(shop):
    pairs = pair_sampler(shop, plain_pairs(shop), 40, 10, batches="mixed")
    assert min(len({pair.query.class_name for pair in pairs(step)}) for step in range(10)) > 2


def test_a_batch_larger_than_there_are_queries_is_refused():
    shop = toy(bag=3)
    for way in BATCHES:
        assert len(pair_sampler(shop, plain_pairs(shop), 3, 10, batches=way)(0)) == 3
        with pytest.raises(ValueError, match="a batch of 4 from the 3 queries of toy; give at most so many"):
            pair_sampler(shop, plain_pairs(shop), 4, 10, batches=way)


def test_an_unknown_way_to_make_up_batches_is_named():
    shop = toy(bag=3)
    with pytest.raises(ValueError, match="batches is 'closest'; use mixed or closer"):
        pair_sampler(shop, plain_pairs(shop), 2, 10, batches="closest")


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 4), st.integers(0, 3), st.integers(0, 5), st.sets(st.integers(0, 6)), st.integers(0, 9))
def test_wrong_answers_are_found_wherever_there_are_any(own, others, count, right, seed):
    """Of the class where it has others, of any class else, and never for ever."""
    products = [Product(f"bag{i}", class_name="bag") for i in range(own)]
    products += [Product(f"hat{i}", class_name="hat") for i in range(others)]
    positives = tuple(product.id for i, product in enumerate(products) if i in right) or ("bag0",)
    query = Query("q", "bag", positives=positives)
    shop = Dataset("few", products, [query])
    wrong = {name: {p.id for p in products if p.class_name == name} - {*positives} for name in ("bag", "hat")}
    make = plain_pairs(shop, count)
    if count and not wrong["bag"] | wrong["hat"]:
        with pytest.raises(ItemError, match="query q: every product is right or shown; ask for 0 hard"):
            make(query, Random(seed))
        return
    found = make(query, Random(seed)).negatives
    assert len(found) == count
    assert {product.id for product in found} <= (wrong["bag"] or wrong["hat"])


def test_a_class_of_its_own_has_wrong_answers_of_others():
    """MERIT has classes with a single product: no random product of them is ever wrong."""
    shop = toy(bag=2, hat=4)
    negatives = plain_pairs(shop, 3)(shop.queries[0], Random(0)).negatives
    assert {product.class_name for product in negatives} == {"hat"}
