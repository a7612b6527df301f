"""Hubs turned down as the papers say, by hand and beside the formulas; what has none stays as it is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab import Condition, Product, Query
from coral_lab.errors import ItemError
from coral_lab.evaluation import Asked
from coral_lab.replication.comparing_runs import LetGo
from coral_lab.retrieval import Index
from coral_lab.study.hubs import WAYS, csls, hubness, qb_norm, turned_down

PRODUCTS = tuple(Product(f"p{i}") for i in range(12))


def unit(rows):
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def pool(rows):
    return Index(LetGo("m", len(rows[0])), PRODUCTS[: len(rows)], unit(rows))


def asked(index, rows, positives, name="q", references=()):
    conditions = tuple(Condition("brand", product) for product in references)
    queries = tuple(
        Query(f"{name}{i}", "bag", conditions, positives=(f"p{p}",)) for i, p in enumerate(positives)
    )
    return Asked(index, queries, unit(rows), "seq", ())


def with_a_hub():
    """Product 0 lies where all queries lie, a little nearer to each than what it asks for. The bank asks for
    the same products in other words.
    """
    own = np.eye(12, 13)
    own[:, 12] = 1.0
    own[0] = np.eye(13)[12]
    index = pool(own)
    queries = own[1:].copy()
    queries[:, :12] *= 0.3
    return asked(index, queries, range(1, 12)), asked(index, queries, range(1, 12), "b")


def test_a_hub_is_turned_down_and_the_right_ones_come_first():
    own, bank = with_a_hub()
    plain = own.ranked()
    assert plain.metrics["R@1"].mean == 0
    assert (plain.ranked[:, 0] == 0).all()
    for how in WAYS:
        result = turned_down(own, bank, how)
        assert result.metrics["R@1"].mean == 1, how
        assert hubness(result, 1) < hubness(plain, 1)
        assert result.model == f"m, {how}"
        assert result.ranked.shape == plain.ranked.shape


def test_without_hubs_nothing_changes():
    index = pool(np.eye(12))
    queries, random = np.eye(12) + 0.1, np.random.default_rng(0)
    own = asked(index, queries, range(12))
    bank = asked(index, queries + 0.01 * random.normal(size=(12, 12)), range(12), "b")
    for how in WAYS:
        assert turned_down(own, bank, how).ranked[:, 0].tolist() == list(range(12))


def test_random_vectors_are_found_no_better():
    random = np.random.default_rng(0)
    index = pool(random.normal(size=(12, 8)))
    own = asked(index, random.normal(size=(60, 8)), [0] * 60)
    bank = asked(index, random.normal(size=(60, 8)), [0] * 60, "b")
    for how in WAYS:
        assert turned_down(own, bank, how).metrics["R@1"].mean < 0.3


def test_querybank_normalisation_by_hand():
    """The bank's first hit is product 0, so the first query is normalised: 0.9 - 0.9 against 0.8 - 0.1."""
    scores, bank = np.array([[0.9, 0.8], [0.3, 0.4]]), np.array([[0.9, 0.1]])
    found = qb_norm(scores, bank)
    assert found[0] == pytest.approx([0.0, 0.7])
    assert found[1].tolist() == [0.3, 0.4]


def test_local_scaling_by_hand():
    """Product 0 has 0.9 and 0.5 among its two nearest of three, product 1 has 0.2 and 0.1."""
    bank = np.array([[0.9, 0.1], [0.5, 0.2], [0.1, 0.0]])
    assert csls(np.array([[0.8, 0.5]]), bank, 2)[0] == pytest.approx([1.6 - 0.7, 1.0 - 0.15])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 1000), st.integers(1, 6), st.integers(2, 9), st.floats(0.5, 40))
def test_the_order_is_that_of_the_papers_formula(seed, queries, products, beta):
    random = np.random.default_rng(seed)
    scores, bank = random.uniform(-1, 1, (queries, products)), random.uniform(-1, 1, (7, products))
    found = qb_norm(scores, bank, beta)
    hubs = set(bank.argmax(1))
    for row, own in zip(scores, found, strict=True):
        softmax = np.exp(beta * row) / np.exp(beta * bank).sum(0)
        expected = softmax if row.argmax() in hubs else row
        assert np.argsort(own).tolist() == np.argsort(expected).tolist()
    near = csls(scores, bank, 3)
    nearest = np.sort(bank, axis=0)[-3:].mean(0)
    np.testing.assert_allclose(near, 2 * scores - nearest)


def test_references_stay_out_and_do_not_vote():
    """Both queries show product 0, which all are near; of what nobody votes on an average is taken."""
    index = pool(np.eye(4))
    own = asked(index, [[3, 2, 1, 0]], [1], references=[PRODUCTS[0]])
    bank = asked(index, [[9, 1, 1, 1]], [1], "b", references=[PRODUCTS[0]])
    scores, votes = np.array([[0.9, 0.1]]), np.array([[-np.inf, 0.2], [-np.inf, 0.1]])
    assert csls(scores, votes, 1)[0] == pytest.approx([1.8 - 0.2, 0.2 - 0.2])
    assert np.isfinite(qb_norm(scores, votes)).all()
    result = turned_down(own, bank)
    assert 0 not in result.ranked[0, :3]
    assert result.ranked[0, 3] == -1
    assert np.isnan(result.scores[0, 3])
    assert result.ranked[0, 0] == 1


def test_what_is_found_rightly_is_not_turned_down():
    """Two queries of the bank want product 1 and say so; nothing else lies near any query."""
    index = pool(np.eye(12, 13))
    own = asked(index, [np.eye(13)[1] + 0.9 * np.eye(13)[2]], [1])
    bank = asked(index, np.tile(np.eye(13)[1] + 0.1, (12, 1)), [1] * 12, "b")
    elsewhere = asked(index, np.tile(np.eye(13)[1] + 0.1, (12, 1)), [5] * 12, "b")
    for how in WAYS:
        assert turned_down(own, bank, how).ranked[0, 0] == 1
        assert turned_down(own, elsewhere, how).ranked[0, 0] == 2  # found for another's sake: a hub


def test_how_often_products_are_found():
    index = pool(np.eye(12))
    even = asked(index, np.eye(12), range(12)).ranked()
    assert hubness(even, 1) == 0
    rows = np.eye(12)
    rows[:, 0] += 2
    assert hubness(asked(index, rows, range(12)).ranked(), 1) > 2


def test_what_cannot_be_turned_down_is_said():
    own, bank = with_a_hub()
    with pytest.raises(ValueError, match="how is 'softmax'; use one of qb-norm, csls"):
        turned_down(own, bank, "softmax")
    with pytest.raises(ValueError, match="a bank asked of the same index"):
        turned_down(own, asked(pool(np.eye(12, 13)), np.eye(12, 13), range(12), "b"))
    with pytest.raises(ItemError, match="query q0: it is measured and in the bank; take other queries"):
        turned_down(own, own)
    scores = np.zeros((2, 3))
    for wrong in (np.zeros((0, 3)), np.zeros((4, 2))):
        for how in (qb_norm, csls):
            with pytest.raises(ValueError, match="give one query or more, and the same products"):
                how(scores, wrong)
    with pytest.raises(ValueError, match=r"beta is 0\.0; give a number above 0"):
        qb_norm(scores, np.zeros((4, 3)), 0.0)
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"k is {k} for a bank of 4 queries; give 1 to 4"):
            csls(scores, np.zeros((4, 3)), k)
