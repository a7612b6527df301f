"""Ways to compose conditions, by hand and on models that must and must not need the interleaved query."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab import Condition, Product, Query, Settings
from coral_lab.errors import ItemError, NotShownError
from coral_lab.evaluation import evaluate
from coral_lab.metrics import paired_difference
from coral_lab.retrieval import Index
from coral_lab.study.composition import (
    INTERLEAVED,
    LESS_CLASS,
    MEAN,
    PRODUCT,
    RRF,
    WAYS,
    compare_ways,
    composed,
    fusion_gap,
    in_words,
    search,
    several,
    singles,
)
from coral_lab.study.fusion import fused

NOTHING_KEPT = Settings(progress=False, store="")
REFERENCES = tuple(Product(f"r{i}", f"reference {i}") for i in range(4))


class Told:
    """Embeds queries as a function of their id and the attributes that they ask says."""

    name = "told"

    def __init__(self, dim, vector):
        self.dim, self.vector = dim, vector

    def embed(self, conversations):
        return np.stack([self.vector(own.item.id, asked(own.item)) for own in conversations])


def asked(query: Query) -> str:
    return "".join(condition.attribute for condition in query.conditions)


def query(id: str, attributes: str = "ab", positive: str = "p0", **others) -> Query:
    conditions = tuple(Condition(key, own) for key, own in zip(attributes, REFERENCES, strict=False))
    return Query(id, "bag", conditions, positives=(positive,), **others)


def pool(vectors, vector, products=None) -> Index:
    rows = np.array(vectors, np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    products = products or [Product(f"p{i}") for i in range(len(rows))]
    return Index(Told(rows.shape[1], vector), products, rows, settings=NOTHING_KEPT)


# Cosines with the two pieces: p0 (1, -0.2), p1 (0.4, 0.39), p2 (0, -0.98).
A, B = np.array([1.0, 0, 0]), np.array([-0.2, 0.96**0.5, 0])
SECOND = (0.39 + 0.08) / 0.96**0.5
THREE = [A, [0.4, SECOND, (1 - 0.16 - SECOND**2) ** 0.5], [0, -1, 0]]
BY_HAND = {"ab": np.array([0, -1.0, 0]), "a": A, "b": B, "": np.array([0, 0, -1.0])}


def test_each_way_by_hand():
    own = pool(THREE, lambda id, attributes: BY_HAND[attributes])
    found = composed(own, [query("q")], k=3)
    assert [*found] == [*WAYS]
    assert found[INTERLEAVED].ranked[0, 0] == 2
    assert found[MEAN].ranked.tolist() == [[0, 1, 2]]  # sums 0.8, 0.79 and less
    assert found[PRODUCT].ranked.tolist() == [[1, 0, 2]]  # 0.7 · 0.695 is more than 1 · 0.4
    logs = np.log([0.7 * 0.695, 1 * 0.4])
    np.testing.assert_allclose(found[PRODUCT].scores[0, :2], logs, atol=1e-4)
    length = np.linalg.norm(A + B)
    np.testing.assert_allclose(found[MEAN].scores[0, :2], np.array([0.8, 0.79]) / length, atol=1e-4)
    assert found[RRF].ranked.tolist() == [[0, 1, 2]]  # each first of one; the tie goes to the pool's first
    np.testing.assert_allclose(found[RRF].scores[0, :2], [1 / 61 + 1 / 62] * 2, rtol=1e-6)
    less = A + B - BY_HAND[""]
    cosines = own.embeddings @ (less / np.linalg.norm(less))
    assert found[LESS_CLASS].ranked[0].tolist() == np.argsort(-cosines).tolist()
    np.testing.assert_allclose(found[LESS_CLASS].scores[0], np.sort(cosines)[::-1], atol=1e-5)
    assert {result.format for result in found.values()} == {"seq"}
    assert {result.model for result in found.values()} == {"told"}


def test_the_class_counts_once_whatever_the_number_of_conditions():
    """If a query's embedding is its class's and its conditions' added up, so is what is composed."""
    parts = np.eye(5)
    plain = pool(
        np.eye(5), lambda id, own: parts[4] + sum((parts["abcd".index(key)] for key in own), np.zeros(5))
    )
    for attributes in ("ab", "abc", "abcd"):
        lengths = [1 / 2**0.5] * len(attributes)  # each single has two parts, and its length is one
        found = composed(plain, [query("q", attributes)], [LESS_CLASS], k=5)[LESS_CLASS]
        expected = sum((x * (parts[i] + parts[4]) for i, x in enumerate(lengths)), np.zeros(5))
        expected -= (len(attributes) - 1) * parts[4]
        cosines = plain.embeddings @ (expected / np.linalg.norm(expected))
        np.testing.assert_allclose(found.scores[0], np.sort(cosines)[::-1], atol=1e-6)


def many(count=40, dim=24, seed=0):
    """Products at random and queries of two to four conditions, each with another right answer."""
    vectors = np.random.default_rng(seed).normal(size=(count, dim))
    return vectors, [query(f"{i}", "abcd"[: 2 + i % 3], f"p{i}") for i in range(count)]


def noise(id, attributes, dim=24):
    return np.random.default_rng([int(id), *attributes.encode()]).normal(size=dim)


def test_a_model_that_needs_to_be_asked_whole_and_one_that_is_better_in_pieces():
    vectors, queries = many()
    whole = pool(vectors, lambda id, own: vectors[int(id)] if len(own) > 1 else noise(id, own))
    gap = fusion_gap(composed(whole, queries, [INTERLEAVED, MEAN]))
    assert gap.mean > 0.8
    assert gap.p < 0.001
    pieces = pool(vectors, lambda id, own: noise(id, own) if len(own) > 1 else vectors[int(id)])
    found = composed(pieces, queries)
    gap = fusion_gap(found)
    assert gap.mean < -0.8
    assert gap.high < 0
    table = compare_ways(found).set_index(["conditions", "way"])
    for way in (MEAN, PRODUCT, RRF):
        assert table.loc[("all", way), "R@1"] == 1
        assert table.loc[("all", way), "p (Holm)"] < 0.01


def test_a_model_that_adds_up_has_no_gap():
    vectors, queries = many()
    adds = pool(vectors, lambda id, own: vectors[int(id)])
    found = composed(adds, queries, [INTERLEAVED, MEAN, PRODUCT, RRF])
    gap = fusion_gap(found)
    assert (gap.mean, gap.low, gap.high, gap.p) == (0, 0, 0, 1)
    assert all(result.metrics["R@1"].mean == 1 for result in found.values())


def test_random_vectors_have_no_gap_to_speak_of():
    vectors, queries = many(120)
    found = composed(pool(vectors, noise), queries)
    assert fusion_gap(found).p > 0.05
    assert (compare_ways(found)["p"].dropna() > 0.01).all()


def test_the_table_is_of_the_same_queries_and_tests_them_in_pairs():
    vectors, queries = many(30)
    found = composed(pool(vectors, lambda id, own: vectors[int(id)] + 2 * noise(id, own)), queries)
    table = compare_ways(found, k=5).set_index(["conditions", "way"])
    assert sorted(set(table.index.get_level_values(0))) == ["2", "3", "4", "all"]
    assert table["queries"].tolist() == [30] * 5 + [10] * 15
    hits = {way: found[way].per_query["R@5"].to_numpy() for way in (INTERLEAVED, RRF)}
    expected = paired_difference(hits[RRF][1::3], hits[INTERLEAVED][1::3])
    row = table.loc[("3", RRF)]
    assert row[["difference", "difference low", "difference high", "p"]].tolist() == [
        expected.mean,
        expected.low,
        expected.high,
        expected.p,
    ]
    assert table.loc[("3", INTERLEAVED), ["difference", "p"]].isna().all()
    assert (table["p (Holm)"].dropna() >= table["p"].dropna()).all()
    gap = fusion_gap(found)
    said = in_words(found)
    assert said.startswith("fusion gap: R@1 0.")
    assert f"{gap.mean:.3f} [{gap.low:.3f}, {gap.high:.3f}]" in said
    assert "30 queries of two conditions or more" in said


def test_interleaved_is_what_evaluate_says_and_rank_fusion_what_fused_does():
    vectors, queries = many(20)
    own = pool(vectors, noise)
    found = composed(own, queries[::3], [INTERLEAVED, RRF])  # of two conditions each
    np.testing.assert_array_equal(found[INTERLEAVED].ranked, evaluate(own.model, queries[::3], own).ranked)
    rankings = [
        replace(evaluate(own.model, [singles(q)[i] for q in queries[::3]], own), queries=tuple(queries[::3]))
        for i in (0, 1)
    ]
    np.testing.assert_array_equal(found[RRF].ranked[:, :20], fused(rankings).ranked[:, :20])


def test_a_search_is_one_of_the_same_and_a_single_condition_is_asked_as_it_is():
    vectors, queries = many(20)
    own = pool(vectors, noise)
    found = composed(own, queries[:1], k=5)
    for way, result in found.items():
        hits = search(own, queries[0], 5, way=way)
        assert [hit.product.id for hit in hits] == [own.products[row].id for row in result.ranked[0]]
        assert [hit.score for hit in hits] == pytest.approx(result.scores[0].tolist())
    single = query("3", "a")
    assert search(own, single).table().equals(own.search(single).table())


@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(3)), seed=st.integers(0, 50))
def test_pieces_have_no_order(order, seed):
    vectors, _ = many(12, seed=seed)
    own = pool(vectors, noise)
    asked = query("7", "abc")
    found = composed(own, [asked, asked.reordered(order)], [MEAN, PRODUCT, RRF, LESS_CLASS], k=12)
    for result in found.values():
        np.testing.assert_allclose(result.scores[0], result.scores[1], atol=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_references_are_left_out_and_a_small_pool_has_empty_places(way):
    products = [Product("p0"), REFERENCES[0], Product("p1"), REFERENCES[1]]
    own = pool(np.eye(4), lambda id, attributes: np.array([1.0, 3, 0.5, 2]), products)
    found = composed(own, [query("1")], [way], k=6)[way]
    assert found.ranked.tolist()[0][:2] == [0, 2]
    assert (found.ranked[0, 2:] == -1).all()
    assert np.isnan(found.scores[0, 2:]).all()
    kept = composed(own, [replace(query("1"), positives=("r0",))], [way])[way]
    assert kept.ranked[0, 0] == 1


def test_what_cannot_be_composed_is_said():
    vectors, queries = many(12)
    own = pool(vectors, noise)
    single = query("1", "a")
    with pytest.raises(
        ItemError, match="query 1: it has 1 conditions, and composing takes two; leave it out"
    ):
        composed(own, [queries[0], single])
    with pytest.raises(NotShownError, match="none of 1 queries has two conditions"):
        several([single])
    assert several([single, queries[0]]) == (queries[0],)
    for arguments, said in (
        ((queries, ["sum"]), "'sum'"),
        ((queries, []), r"ways are \(\)"),
        (([],), "queries 0"),
    ):
        with pytest.raises(ValueError, match=said):
            composed(own, *arguments)
    with pytest.raises(ValueError, match="k 0"):
        composed(own, queries, k=0)
    bare = replace(queries[0], class_name="", text="")
    with pytest.raises(
        ItemError, match="neither class nor text, so there is no 'less class'; leave that way out"
    ):
        composed(own, [bare])
    assert composed(own, [bare], [MEAN])
    opposite = pool(THREE, lambda id, attributes: A if attributes == "a" else -A)
    with pytest.raises(ItemError, match="the embeddings of its conditions cancel out"):
        composed(opposite, [query("1")], [MEAN])
    found = composed(own, queries, [MEAN, RRF])
    with pytest.raises(ValueError, match="no result of 'interleaved' among mean, rrf; compose it too"):
        compare_ways(found)
    with pytest.raises(ValueError, match="no result of 'interleaved'"):
        fusion_gap(found)
    other = composed(own, queries[1:], [INTERLEAVED])
    with pytest.raises(ValueError, match="ranked other queries; compose them together"):
        compare_ways(found | other)
