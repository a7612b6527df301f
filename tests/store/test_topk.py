"""Top-k is exact: what sorting all scores would give, ties included, however the work is cut."""

from inspect import unwrap

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coral_lab.store import topk
from coral_lab.store.topk import top_k


@pytest.fixture(autouse=True, scope="module")
def small_pools_are_worth_int8():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(topk, "SIZE", 1)
        yield


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
    best = topk._best
    monkeypatch.setattr(topk, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(topk, "_best", lambda scores, k: sizes.append(len(scores)) or best(scores, k))
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


def by_int8(monkeypatch) -> list[int]:
    """From here on, how many queries int8 left to float32, call by call; skips where the processor has
    none.
    """
    if not topk._has_int8():
        pytest.skip("the processor has no VNNI")
    left, pass_ = [], topk._by_int8
    monkeypatch.setattr(topk, "_by_int8", lambda *a: (rows := pass_(*a), left.append(len(rows)))[0])
    return left


def unit(count: int, dim: int, seed: int) -> np.ndarray:
    rows = vectors(count, dim, seed)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def clusters(count: int, dim: int, seed: int, noise: float) -> np.ndarray:
    """Twenty a cluster, as far from its centre as the noise says."""
    rows = unit(count // 20, dim, seed).repeat(20, 0) + noise * unit(count // 20 * 20, dim, seed + 1)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def sorted_dots(queries: np.ndarray, candidates: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """`brute_force` for larger arrays: NumPy's dot product of each pair, sorted."""
    scores = np.vecdot(queries[:, None], candidates)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, 1), rows


@pytest.mark.parametrize("noise", [0.3, 1.0])
@pytest.mark.parametrize("k", [1, 10, 40])
def test_a_prepared_pool_gives_what_sorting_gives_to_the_last_bit(monkeypatch, noise, k):
    left = by_int8(monkeypatch)
    candidates = clusters(6000, 64, 0, noise)
    queries = candidates[::200] + 0.1 * unit(30, 64, 5)
    scores, rows = top_k(queries, topk.prepare(candidates), k)
    expected_scores, expected_rows = sorted_dots(queries, candidates, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)
    assert left[-1] == 0 or k == 40 or noise == 1  # else the test would be of float32


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(1, 70), st.sampled_from([-100, -1, 0, 1]), st.integers(2, 40))
def test_ties_go_to_the_lower_row_in_a_prepared_pool(seed, k, low, dim):
    queries, candidates = vectors(5, dim, seed, low), vectors(32 * 4 * 70, dim, seed + 1, low)
    pool = topk.prepare(candidates)
    scores, rows = top_k(queries, pool, k)
    expected_scores, expected_rows = sorted_dots(queries, candidates, k)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_more_near_duplicates_than_int8_can_tell_apart_are_left_to_float32(monkeypatch):
    left = by_int8(monkeypatch)
    near = unit(1, 64, 0) + 1e-4 * unit(1500, 64, 1)
    candidates = np.concatenate([unit(1500, 64, 2), near / np.linalg.norm(near, axis=1, keepdims=True)])
    queries = np.concatenate([candidates[-1:], unit(1, 64, 2), candidates[-2:-1]])
    scores, rows = top_k(queries, topk.prepare(candidates), 10)
    assert left[0] >= 2
    expected_scores, expected_rows = sorted_dots(queries, candidates, 10)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_array_equal(scores, expected_scores)


def test_no_answer_depends_on_what_else_is_asked_or_on_blocks(monkeypatch):
    candidates = clusters(3000, 64, 0, 0.5)
    queries = np.concatenate([candidates[::75], unit(20, 64, 9)])
    pool = topk.prepare(candidates)
    whole = top_k(queries, pool, 10)
    ways = [top_k(queries, candidates, 10)]
    ways += [tuple(map(np.concatenate, zip(*(top_k(q[None], pool, 10) for q in queries), strict=True)))]
    ways += [tuple(map(np.concatenate, zip(*(top_k(q[None], candidates, 10) for q in queries), strict=True)))]
    for name, value in {
        "QUERIES": 7,
        "PART": 700,
        "TILE": 100,
        "PAIRS": 3,
        "ROWS": 50,
        "BLOCK_BYTES": 4 * 3000,
        "MANY": 1,
    }.items():
        monkeypatch.setattr(topk, name, value)
        ways += [top_k(queries, pool, 10), top_k(queries, candidates, 10)]
    ways += [top_k(queries, np.asfortranarray(candidates), 10)]
    for scores, rows in ways:
        np.testing.assert_array_equal(rows, whole[1])
        np.testing.assert_array_equal(scores, whole[0])


def test_a_list_longer_than_a_block_is_worked_out_query_by_query(monkeypatch):
    left = by_int8(monkeypatch)
    candidates = clusters(3000, 64, 0, 0.5)
    monkeypatch.setattr(topk, "QUERIES", 1)
    found = top_k(candidates[:9], topk.prepare(candidates), 20)  # 80 are kept, of a block of 64
    for one, other in zip(found, sorted_dots(candidates[:9], candidates, 20), strict=True):
        np.testing.assert_array_equal(one, other)
    assert left


def test_without_int8_a_pool_is_searched_in_float32(monkeypatch):
    candidates = clusters(3000, 64, 0, 0.5)
    expected = top_k(candidates[:30], topk.prepare(candidates), 10)
    monkeypatch.setattr(topk, "_has_int8", lambda: False)
    pool = topk.prepare(candidates)
    assert pool.codes is None
    for found, wanted in zip(top_k(candidates[:30], pool, 10), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("prepared", [False, True])
def test_a_bfloat16_file_gives_what_its_rows_in_memory_give(tmp_path, prepared):
    rows = torch.from_numpy(clusters(3000, 64, 0, 0.5)).bfloat16()
    (tmp_path / "rows").write_bytes(rows.view(torch.int16).numpy().tobytes())
    mapped = torch.from_file(
        str(tmp_path / "rows"), shared=False, size=rows.numel(), dtype=torch.bfloat16
    ).view(-1, 64)
    inside, queries = rows.float().numpy(), rows[:40].float().numpy()
    found = top_k(queries, topk.prepare(mapped) if prepared else mapped, 10)
    for one, other in zip(found, top_k(queries, inside, 10), strict=True):
        np.testing.assert_array_equal(one, other)


def test_int8_products_do_not_saturate():
    ends = np.full((3000, 256), 1, np.float32)
    ends[1::2] = -1
    scores, rows = top_k(ends[:2], topk.prepare(ends), 2)
    np.testing.assert_array_equal(scores, np.full((2, 2), 256))
    np.testing.assert_array_equal(rows, [[0, 2], [1, 3]])


def test_a_pool_that_cannot_be_is_refused():
    broken = vectors(5000)
    broken[4321, 3] = np.nan
    with pytest.raises(ValueError, match="candidates hold NaN or infinity in row 4321"):
        topk.prepare(broken)
    for shape in ((8,), (2, 3, 8)):
        with pytest.raises(ValueError, match=r"give \[candidate, dim\]"):
            unwrap(topk.prepare)(np.zeros(shape, np.float32))
    with pytest.raises(ValueError, match=r"shapes are \(2, 8\) and \(9, 7\)"):
        top_k(vectors(2), topk.prepare(vectors(9, 7)), 1)
    assert len(topk.prepare(vectors(9))) == 9
    large = np.full((3, 4), 1e30, np.float32)  # finite, though its squares are not
    assert topk.prepare(large).norm == pytest.approx(2e30)


@pytest.mark.parametrize("dim", [3, 64, 500])
def test_what_int8_says_of_a_product_is_off_by_no_more_than_its_bound(dim):
    """q·c is q·centre + q̂·ĉ within |r| |c - centre| + |q̂| |s|, here in double precision."""
    candidates, queries = clusters(600, dim, 0, 0.7) + 0.3, unit(20, dim, 7)
    pool = topk._encode(candidates, topk._largest_norm(candidates, "candidates"))
    rest = candidates.astype(float) - pool.centre
    kept = pool.codes.numpy().astype(float) * pool.scales.numpy()[:, None]
    assert pool.norm == pytest.approx(np.linalg.norm(candidates, axis=1).max())
    assert pool.radius == pytest.approx(np.linalg.norm(rest, axis=1).max(), rel=1e-4)
    assert pool.residual == pytest.approx(np.linalg.norm(rest - kept, axis=1).max(), rel=1e-3)
    assert np.abs(pool.codes.numpy()).max(1).tolist() == [127] * len(candidates)  # nothing is given away
    codes, scale, residual = topk._codes(queries)
    asked = codes.numpy().astype(float) * scale[:, None]
    np.testing.assert_allclose(residual, np.linalg.norm(queries - asked, axis=1), rtol=1e-3)
    wrong = np.abs(queries.astype(float) @ rest.T - asked @ kept.T)
    bound = residual * pool.radius + (1 + residual) * pool.residual
    assert (wrong <= bound[:, None]).all()


def test_rounding_is_the_bound_of_a_sum_in_any_order():
    queries, row = unit(3, 50, 1) * np.array([[1], [2], [4]], np.float32), unit(1, 50, 2)
    bound = topk._rounding(queries, 3.0)
    np.testing.assert_allclose(bound, 58 * 2.0**-23 * 3 * np.array([1, 2, 4]), rtol=1e-5)
    orders = [np.random.default_rng(seed).permutation(50) for seed in range(200)]
    sums = np.array(
        [[np.cumsum((q * row[0])[order], dtype=np.float32)[-1] for order in orders] for q in queries]
    )
    assert (np.ptp(sums, axis=1) <= topk._rounding(queries, 1.0)).all()
    assert (np.ptp(sums, axis=1) > 0).any()


@pytest.mark.parametrize(
    ("rows", "dim", "queries", "pays"),
    [(2048, 4, 5, True), (4096, 2, 6, True), (2047, 5, 5, False), (2048, 3, 5, False), (2048, 4, 4, False)],
)
def test_a_pool_is_prepared_for_one_call_where_that_pays(monkeypatch, rows, dim, queries, pays):
    """Sixteen rows for each of two halves of 64 that are kept, numbers enough, and queries enough."""
    prepared, prepare = [], topk.prepare
    monkeypatch.setattr(topk, "SIZE", 2048 * 4)
    monkeypatch.setattr(topk, "MANY", 5)
    monkeypatch.setattr(topk, "prepare", lambda rows: prepared.append(rows) or prepare(rows))
    top_k(vectors(queries, dim), vectors(rows, dim, 1), 16)
    assert len(prepared) == pays


@pytest.mark.parametrize(
    ("rows", "k", "kept"),
    [
        (2047, 1, []),
        (2048, 1, [64]),
        (32 * 80 - 1, 20, []),
        (32 * 80, 20, [80]),
        (32 * 1024 - 1, 1, [64]),
        (32 * 1024, 1, [64, 1024]),
    ],
)
def test_a_short_list_is_tried_before_a_long_one_where_rows_are_enough(monkeypatch, rows, k, kept):
    tried, candidates = [], vectors(rows, 2)
    pool = topk.Prepared(candidates, topk._largest_norm(candidates, "candidates"), codes="some")
    monkeypatch.setattr(topk, "_by_int8", lambda *own: tried.append(own[3]) or own[4])  # tells nothing apart
    found = top_k(candidates[:2], pool, k)
    assert tried == kept
    for one, other in zip(found, top_k(candidates[:2], candidates, k), strict=True):
        np.testing.assert_array_equal(one, other)
