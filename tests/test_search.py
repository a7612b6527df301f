"""Top-k is exact: what sorting all scores would give, ties included, however the work is cut."""

from inspect import unwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab import search
from coral_lab.search import top_k


def brute_force(queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Sorted by falling score, then by rising row, one query at a time."""
    scores, rows = [], []
    for query in queries:
        row_scores = [float(query @ candidate) for candidate in candidates]
        best = sorted(range(len(candidates)), key=lambda row: (-row_scores[row], row))[:k]
        scores.append([row_scores[row] for row in best])
        rows.append(best)
    width = min(k, len(candidates))
    return np.array(scores).reshape(len(queries), width), np.array(rows, int).reshape(len(queries), width)


def vectors(count: int, dim: int = 8, seed: int = 0, low: int | None = None) -> np.ndarray:
    """Normal vectors or, with `low`, small whole numbers, whose dot products are exact and tie often."""
    random = np.random.default_rng(seed)
    values = random.normal(size=(count, dim)) if low is None else random.integers(low, 2, (count, dim))
    return values.astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 49, 50])
def test_it_is_what_sorting_all_scores_gives(k):
    queries, candidates = vectors(20), vectors(50, seed=1)
    scores, rows = top_k(queries, candidates, k)
    expected_scores, expected_rows = brute_force(queries, candidates, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5, atol=1e-6)


@settings(deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 6),
    st.integers(0, 30),
    st.integers(1, 35),
    st.sampled_from([-1, 0, 1]),
)
def test_ties_go_to_the_lower_row(seed, n_queries, n_candidates, k, low):
    queries = vectors(n_queries, 3, seed, low)
    candidates = vectors(n_candidates, 3, seed + 1, low)
    scores, rows = top_k(queries, candidates, k)
    expected_scores, expected_rows = brute_force(queries, candidates, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_a_k_beyond_the_candidates_gives_all_of_them():
    scores, rows = top_k(vectors(2), vectors(3, seed=1), 10)
    assert scores.shape == rows.shape == (2, 3)
    assert sorted(rows[0]) == [0, 1, 2]


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(("n_queries", "n_candidates"), [(0, 3), (2, 0), (0, 0)])
def test_nothing_to_find_and_nobody_to_ask_is_an_empty_answer(n_queries, n_candidates, k):
    scores, rows = top_k(vectors(n_queries), vectors(n_candidates), k)
    assert scores.shape == rows.shape == (n_queries, min(k, n_candidates))


@pytest.mark.parametrize("block_bytes", [1, 4 * 50 * 3, 4 * 50 * 20])
@pytest.mark.parametrize("low", [None, 0])
def test_cutting_the_work_into_blocks_changes_nothing(monkeypatch, block_bytes, low):
    queries, candidates = vectors(20, low=low), vectors(50, seed=1, low=low)
    whole = top_k(queries, candidates, 5)
    sizes = []
    best = search._best
    monkeypatch.setattr(search, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(search, "_best", lambda scores, k: sizes.append(len(scores)) or best(scores, k))
    scores, rows = top_k(queries, candidates, 5)
    assert sum(sizes) == 20
    assert max(sizes) == max(1, block_bytes // (4 * 50))
    np.testing.assert_array_equal(rows, whole[1])
    np.testing.assert_allclose(scores, whole[0], rtol=1e-5, atol=1e-6)


def test_scores_are_float32_fall_and_belong_to_their_rows():
    queries, candidates = vectors(20), vectors(50, seed=1)
    scores, rows = top_k(queries, candidates, 7)
    assert (scores.dtype, rows.dtype) == (np.float32, np.int64)
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(
        scores, np.einsum("qd,qkd->qk", queries, candidates[rows]), rtol=1e-5, atol=1e-6
    )


def test_the_arrays_are_left_as_they_were():
    queries, candidates = vectors(3), vectors(5, seed=1)
    before = queries.copy(), candidates.copy()
    top_k(queries, candidates, 2)
    np.testing.assert_array_equal(queries, before[0])
    np.testing.assert_array_equal(candidates, before[1])


@pytest.mark.parametrize("k", [0, -1])
def test_a_k_below_one_is_refused(k):
    with pytest.raises(ValueError, match=f"k is {k}; ask for at least 1"):
        top_k(vectors(1), vectors(1), k)


@pytest.mark.parametrize(("queries", "candidates"), [((2, 3), (4, 5)), ((3,), (4, 3)), ((2, 3), (3,))])
def test_arrays_that_do_not_fit_are_refused_with_both_shapes(queries, candidates):
    unchecked = unwrap(top_k)  # what a user calls: the tests' type check would be first to refuse
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        unchecked(np.zeros(queries, np.float32), np.zeros(candidates, np.float32), 1)
    assert f"shapes are {queries} and {candidates}" in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["queries", "candidates"])
def test_a_row_that_is_not_finite_is_named(name, value):
    arrays = {"queries": vectors(9), "candidates": vectors(9, seed=1)}
    arrays[name][6, 2] = value
    arrays[name][8, 0] = -value
    with pytest.raises(ValueError, match=f"{name} hold NaN or infinity in row 6"):
        top_k(arrays["queries"], arrays["candidates"], 1)
