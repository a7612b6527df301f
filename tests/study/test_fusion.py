"""Rankings fused as the papers say, by hand; embeddings cut and normalised again."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coral_lab import Product, Query
from coral_lab.errors import ItemError
from coral_lab.evaluation import Asked, Result
from coral_lab.replication.comparing_runs import LetGo
from coral_lab.retrieval import Index
from coral_lab.study.fusion import WAYS, fused, truncated, truncations

PRODUCTS = tuple(Product(f"p{i}") for i in range(8))


def result(ranked, scores=None, name="m", positives="p0"):
    rows = np.array(ranked, np.int64)
    values = -np.arange(rows.shape[1], dtype=np.float32) + np.zeros(rows.shape, np.float32)
    values = values if scores is None else np.array(scores, np.float32)
    queries = tuple(Query(f"q{i}", "bag", positives=(positives,)) for i in range(len(rows)))
    return Result(name, queries, PRODUCTS, rows, np.where(rows < 0, np.float32("nan"), values))


def test_reciprocal_ranks_by_hand():
    found = fused([result([[0, 1, 2]], name="a"), result([[2, 0, 3]], name="b")])
    assert found.ranked.tolist() == [[0, 2, 1]]
    assert found.scores[0] == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62], rel=1e-6)
    assert found.model == "rrf(a + b)"
    assert found.per_query["rank"].tolist() == [1]


def test_a_small_constant_trusts_the_first_and_a_large_one_agreement():
    one, other = result([[0, 1, 2]]), result([[3, 4, 2]])
    assert fused([one, other], k=0).ranked[0, 0] == 0
    assert fused([one, other], k=60).ranked[0, 0] == 2


def test_scores_by_hand():
    one = result([[0, 1, 2]], [[0.9, 0.5, 0.1]])
    other = result([[1, 3, 0]], [[0.8, 0.7, 0.4]])
    small = fused([one, other], "min-max")
    assert small.ranked.tolist() == [[1, 0, 3]]
    assert small.scores[0] == pytest.approx([0.5 + 1, 1 + 0, 0 + 0.75], rel=1e-6)
    spread = [np.std([0.9, 0.5, 0.1]), np.std([0.8, 0.7, 0.4])]
    mean = (0.8 + 0.7 + 0.4) / 3
    z = fused([one, other], "z")
    assert z.ranked.tolist() == [[1, 0, 3]]
    assert z.scores[0] == pytest.approx(
        [
            (0.8 - mean) / spread[1],
            0.4 / spread[0] + (0.4 - mean) / spread[1],
            -0.4 / spread[0] + (0.7 - mean) / spread[1],  # what the first ranking's last one gets
        ],
        rel=1e-5,
    )


@pytest.mark.parametrize("how", WAYS)
def test_what_a_ranking_does_not_have_stays_empty(how):
    found = fused([result([[4, -1, -1], [-1, -1, -1]]), result([[-1, -1, -1], [-1, -1, -1]])], how)
    assert found.ranked.tolist() == [[4, -1, -1], [-1, -1, -1]]
    assert np.isnan(found.scores[0, 1:]).all()
    assert np.isnan(found.scores[1]).all()


@pytest.mark.parametrize("how", WAYS)
@given(orders=st.lists(st.permutations(range(8)), min_size=2, max_size=4))
def test_the_order_of_models_does_not_matter_and_a_ranking_alone_stays(how, orders):
    given_results = [result([list(order)], name=str(i)) for i, order in enumerate(orders)]
    mine, theirs = fused(given_results, how), fused(given_results[::-1], how)
    np.testing.assert_allclose(mine.scores, theirs.scores, atol=1e-6)
    assert sorted(mine.ranked[0]) == list(range(8))
    assert fused([given_results[0]] * 2, how).ranked.tolist() == given_results[0].ranked.tolist()


def test_ties_go_to_the_first_of_the_pool_and_depths_may_differ():
    found = fused([result([[5, 1, 2, 3]]), result([[1, 5]])])
    assert found.ranked.tolist() == [[1, 5, 2, 3]]


def test_what_cannot_be_fused_is_said():
    one = result([[0, 1]])
    with pytest.raises(ValueError, match="1 results are given; give at least two"):
        fused([one])
    with pytest.raises(ValueError, match="how is 'borda' and k 60; use one of rrf, z, min-max"):
        fused([one, one], "borda")
    with pytest.raises(ValueError, match="k -1"):
        fused([one, one], k=-1)
    others = (replace(one, products=PRODUCTS[::-1]), result([[0, 1], [1, 2]]))
    for other in others:
        with pytest.raises(ValueError, match="'m' ranked other queries or products than 'm'; rank the same"):
            fused([one, other])


def asked(products, queries, positives):
    rows = [np.array(own, np.float32) for own in (products, queries)]
    rows = [own / np.linalg.norm(own, axis=1, keepdims=True) for own in rows]
    index = Index(LetGo("m", rows[0].shape[1]), PRODUCTS[: len(products)], rows[0])
    own = tuple(Query(f"q{i}", "bag", positives=(f"p{p}",)) for i, p in enumerate(positives))
    return Asked(index, own, rows[1], "seq", ())


def test_a_cut_embedding_is_normalised_again():
    """In two dimensions (3, 4, 12) / 13 is (3, 4) / 5."""
    found = truncated(asked([[3, 4, 12], [1, 0, 0]], [[4, 3, 0]], [0]), 2)
    assert found.ranked.tolist() == [[0, 1]]
    assert found.scores[0] == pytest.approx([24 / 25, 4 / 5], rel=1e-6)
    assert found.model == "m, 2 of 3 dimensions"


def test_all_dimensions_are_what_was_asked_and_fewer_are_a_search_of_their_own():
    random = np.random.default_rng(0)
    own = asked(random.normal(size=(8, 6)), random.normal(size=(5, 6)), [0, 1, 2, 3, 4])
    whole = own.ranked()
    np.testing.assert_array_equal(truncated(own, 6).ranked, whole.ranked)
    products, queries = own.index.embeddings[:, :3], own.embeddings[:, :3]
    lengths = [np.linalg.norm(own, axis=1) for own in (queries, products)]
    cosine = (queries @ products.T) / np.outer(*lengths)
    np.testing.assert_array_equal(truncated(own, 3).ranked, np.argsort(-cosine, axis=1))
    table = truncations(own, (3, 6)).set_index("dim")
    assert table["bytes an embedding"].tolist() == [12, 24]
    for dim in (3, 6):
        value = truncated(own, dim).metrics["MRR@10"]
        assert table.loc[dim, ["MRR@10", "MRR@10 low", "MRR@10 high"]].tolist() == [
            value.mean,
            value.low,
            value.high,
        ]


def test_what_cannot_be_cut_is_said():
    own = asked([[0, 0, 1], [1, 0, 0]], [[1, 1, 0]], [1])
    for dim in (0, 4):
        with pytest.raises(ValueError, match=f"dim is {dim}; give 1 to 3"):
            truncated(own, dim)
    with pytest.raises(ItemError, match="product p0: its first 2 dimensions are all 0; keep more of them"):
        truncated(own, 2)
    assert truncations(own, ()).empty
