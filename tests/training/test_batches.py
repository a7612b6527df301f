"""A batch is its pairs and its numbers alone, and those to come are made ready in turn."""

import threading
from collections import Counter
from random import Random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab.errors import ItemError
from coral_lab.mini.pairs import mini_pairs
from coral_lab.models.pixels import Pixels, key
from coral_lab.query import Product, Query
from coral_lab.training import batches, distributed
from coral_lab.training.batches import AHEAD, Pair, ahead, make_batch, with_pixels
from coral_lab.training.contrastive import gradients
from coral_lab.training.learner import Learner
from coral_lab.training.pairs import pair_sampler
from coral_lab.training.reconstruction import Coral, decoders
from tests.conftest import assert_same_gradients, noise

WAIT = 30  # seconds at most for another thread


class Maker:
    """Makes numbers, and says what it was asked for and by whom."""

    def __init__(self, fails=()):
        self.asked, self.fails, self.threads = [], fails, set()

    def __call__(self, number):
        self.asked.append(number)
        self.threads.add(threading.current_thread().name)
        if number in self.fails:
            raise KeyError(number)
        return 10 * number


def settled(maker, asked) -> bool:
    """Whether it was asked for these, once the other thread came to it, and for no more."""
    for _ in range(WAIT * 100):
        if len(maker.asked) >= len(asked):
            break
        threading.Event().wait(0.01)
    threading.Event().wait(0.05)
    return maker.asked == asked


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 8), st.integers(0, 4), st.lists(st.integers(0, 7), max_size=12))
def test_each_number_gives_its_own_whatever_the_order(stop, count, order):
    maker = Maker()
    with ahead(maker, stop, count) as get:
        assert [get(number) for number in order] == [10 * number for number in order]
    assert all(number < max([stop, *(n + 1 for n in order)]) for number in maker.asked)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_in_turn_each_is_made_once_and_in_order(count):
    maker = Maker()
    with ahead(maker, 7, count) as get:
        for number in range(7):
            assert get(number) == 10 * number
            assert len(maker.asked) <= number + 1 + count
    assert maker.asked == list(range(7))


@pytest.mark.parametrize(("first", "asked"), [(0, [0, 1, 2]), (4, [4, 5, 6]), (6, [6, 7]), (7, [7])])
def test_so_many_are_made_before_they_are_asked_for_and_none_from_the_stop_on(first, asked):
    maker = Maker()
    with ahead(maker, 8) as get:
        get(first)
        assert settled(maker, asked)
    assert AHEAD == 2


def test_they_are_made_by_one_other_thread_while_the_model_computes():
    maker = Maker()
    with ahead(maker, 5) as get:
        get(0)
        assert settled(maker, [0, 1, 2])
        get(1)
        assert settled(maker, [0, 1, 2, 3])
    assert len(maker.threads) == 1
    assert threading.current_thread().name not in maker.threads


def test_what_was_raised_is_raised_when_it_is_asked_for_and_not_before():
    with ahead(Maker(fails={1, 3}), 5) as get:
        assert get(0) == 0
        for number in (1, 3):
            with pytest.raises(KeyError):
                get(number)
            assert get(number + 1) == 10 * (number + 1)


def test_asked_out_of_turn_what_is_not_wanted_is_dropped():
    maker = Maker()
    with ahead(maker, 100) as get:
        assert [get(0), get(50), get(50), get(2), get(3)] == [0, 500, 500, 20, 30]
    assert {0, 50, 2, 3} <= set(maker.asked)
    assert not set(maker.asked) - {0, 1, 2, 50, 51, 52, 3, 4, 5}


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_the_thread_ends_with_the_block_and_what_waits_is_never_made(error):
    asked, going, before = [], threading.Event(), threading.enumerate()

    def make(number):
        asked.append(number)
        assert number == 0 or going.wait(WAIT)
        return number

    release = threading.Timer(0.3, going.set)
    try:
        with ahead(make, 100, 50) as get:
            assert get(0) == 0
            release.start()
            if error:
                raise error
    except (ValueError, KeyboardInterrupt):
        assert error
    assert asked in ([0], [0, 1])  # of fifty
    release.join(WAIT)
    assert not {*threading.enumerate()} - {*before}


def test_without_a_request_nothing_is_made():
    maker = Maker()
    with ahead(maker, 5):
        pass
    assert maker.asked == []


# what a batch is made of


@pytest.fixture(scope="module")
def pairs(shop):
    return pair_sampler(shop, mini_pairs(shop, negatives=1), batch_size=4, steps=10)(9)


def test_a_batch_of_a_generator_is_the_same_whatever_torch_drew_before(random_model, pairs):
    made = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        expected = torch.rand(1)
        torch.manual_seed(seed)
        own = torch.Generator().manual_seed(5)
        made.append(make_batch(random_model, pairs, 9, augmented=True, generator=own))
        assert torch.equal(torch.rand(1), expected)  # and draws nothing of torch's own
    assert torch.equal(made[0].draws, made[1].draws)
    assert made[0].moves.keys() == made[1].moves.keys()
    assert all(torch.equal(move, made[1].moves[k]) for k, move in made[0].moves.items())
    assert len({tuple(move.tolist()) for move in made[0].moves.values()}) == len(made[0].moves)
    other = make_batch(random_model, pairs, 9, augmented=True, generator=torch.Generator().manual_seed(6))
    assert not torch.equal(other.draws, made[0].draws)
    assert not any(torch.equal(move, made[0].moves[k]) for k, move in other.moves.items())


def test_without_a_generator_torch_s_own_numbers_are_taken(random_model, pairs):
    torch.manual_seed(3)
    expected = torch.rand(4, 9)
    torch.manual_seed(3)
    assert torch.equal(make_batch(random_model, pairs, 9).draws, expected)


NAMES = "abcdef"
PAIRS = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.lists(st.sampled_from(NAMES), max_size=3),
        st.lists(st.sampled_from(NAMES), min_size=2, max_size=2),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(PAIRS, st.integers(0, 2))
def test_also_positive_is_every_candidate_that_answers_a_query(random_model, drawn, hard):
    """By a double loop: the positive that a query is paired with, and all others that it names."""
    known = {name: Product(name, name, None, "bag") for name in NAMES}
    pairs = [
        Pair(
            Query(f"q{i}", "bag", (), text=".", positives=tuple(others)),
            known[positive],
            tuple(known[name] for name in wrong[:hard]),
        )
        for i, (positive, others, wrong) in enumerate(drawn)
    ]
    found = make_batch(random_model, pairs).also_positive.tolist()
    candidates = [positive for positive, *_ in drawn] + [n for *_, wrong in drawn for n in wrong[:hard]]
    expected = [[name == own or name in others for name in candidates] for own, others, _ in drawn]
    assert found == expected


def test_prompts_are_queries_then_positives_then_negatives_query_by_query(random_model):
    made = {name: Product(name, name, None, "bag") for name in NAMES}
    pairs = [
        Pair(Query("q0", "bag", text="."), made["a"], (made["b"], made["c"])),
        Pair(Query("q1", "bag", text="."), made["d"], (made["e"], made["f"])),
    ]
    batch = make_batch(random_model, pairs)
    assert [p.name for p in batch.prompts] == [
        *("query q0", "query q1"),
        *(f"product {name}" for name in "adbcef"),
    ]
    second = batch.part(range(1, 2))
    assert [p.name for p in second.prompts] == ["query q1", *(f"product {name}" for name in "def")]
    assert (len(batch), len(second)) == (2, 1)


def test_queries_are_in_the_format_asked_for_and_products_are_not(random_model, pairs):
    one, other = (make_batch(random_model, pairs, format=name) for name in ("seq", "caption"))
    assert [p.text for p in one.queries] != [p.text for p in other.queries]
    assert one.positives == other.positives


def test_a_batch_with_its_pictures_processed_gives_the_same_gradients(random_model, pairs, monkeypatch):
    coral = Coral()
    heads = decoders(random_model, coral)
    learner = Learner(random_model, heads, coral)
    batch = make_batch(random_model, pairs, heads.longest, True, generator=torch.Generator().manual_seed(0))
    ready, found = with_pixels(random_model, batch), []
    assert ready.pixels.keys() == {key(picture) for prompt in batch.prompts for picture in prompt.pictures}
    for own, chunk in ((batch, None), (ready, None), (ready, 2)):
        if own is ready:
            monkeypatch.setattr(Pixels, "__call__", lambda *_: pytest.fail("opened again"))
        terms = gradients(learner, own, chunk)
        named = [*random_model.network.named_parameters(), *heads.named_parameters()]
        found.append((terms, {name: p.grad.clone() for name, p in named if p.grad is not None}))
        random_model.network.zero_grad()
        heads.zero_grad()
    assert found[0][0] == found[1][0]
    assert all(torch.equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())
    assert_same_gradients(found[2][1], found[0][1])


def test_a_process_opens_the_pictures_of_its_own_rows_alone(random_model, monkeypatch):
    products = [Product(f"p{i}", "", noise(56, 56, i), "bag") for i in range(4)]
    pairs = [Pair(Query(f"q{i}", "bag", text="."), product) for i, product in enumerate(products)]
    batch = make_batch(random_model, pairs)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda: rank)  # noqa: B023
        own = with_pixels(random_model, batch)
        assert [*own.pixels] == [key(product.image) for product in products[2 * rank : 2 * rank + 2]]


def test_a_picture_that_cannot_be_opened_is_named_when_its_batch_is_asked_for(random_model, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"bad")
    bad = Product("bad", "", tmp_path / "bad.png", "bag")
    pair = Pair(Query("q", "bag", text="."), bad)

    def make(number):
        return with_pixels(random_model, make_batch(random_model, [pair])) if number else number

    with ahead(make, 3) as get:
        assert get(0) == 0
        with pytest.raises(ItemError, match="product bad"):
            get(1)


def test_pairs_of_a_step_drawn_in_another_thread_are_the_same(shop):
    """Batches are made ahead: nothing of them may depend on what else is drawn meanwhile."""
    sampler = pair_sampler(shop, mini_pairs(shop, 1), 6, 20, batches="mixed")
    expected = [[(p.query.id, p.positive.title) for p in sampler(step)] for step in range(8)]
    with ahead(sampler, 8) as get:
        found = []
        for step in range(8):
            Random(0).random()
            found.append([(p.query.id, p.positive.title) for p in get(step)])
    assert found == expected
    assert max(Counter(id for step in found for id, _ in step).values()) == 1
    assert batches.AHEAD > 0
